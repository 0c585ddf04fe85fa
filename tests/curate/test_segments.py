"""Segments tile a clip, are long enough, and meet where the pictures change."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.curate.segments import choose_segments, segment_count
from megatv.curate.settings import SegmentSettings


def scenes(*lengths):
    """Unit vectors [N, 8] that change after so many frames."""
    return np.eye(8)[np.repeat(np.arange(len(lengths)), lengths)]


def test_boundaries_are_where_the_pictures_change():
    times = 20 + np.arange(32) / 4
    found = choose_segments((20, 28), scenes(8, 12, 12), times, [22, 25], SegmentSettings())
    assert found == [(20, 22), (22, 25), (25, 28)]


def test_frames_outside_the_clip_do_not_matter():
    times = np.arange(60) / 4
    embeddings = scenes(15, 5, 10, 10, 20)
    found = choose_segments((4.6, 12.6), embeddings, times, [7.5, 10], SegmentSettings())
    assert found == [(4.6, 7.5), (7.5, 10), (10, 12.6)]


def test_a_still_picture_is_cut_evenly():
    times = np.arange(32) / 4
    found = choose_segments((0, 8), np.ones((32, 4)) / 2, times, [], SegmentSettings(quiet_seconds=4))
    assert found == [(0, 4), (4, 8)]


def test_a_key_frame_outweighs_a_slightly_larger_change():
    a, b, c = np.eye(3)
    middle = np.stack([a] * 12 + [b] * 8 + [c] * 12)
    times = np.arange(32) / 4
    settings = SegmentSettings(quiet_seconds=8)
    assert choose_segments((0, 8), middle, times, [3.0], settings)[0] == (0, 3)
    assert choose_segments((0, 8), middle, times, [5.0], settings)[0] == (0, 5)


@pytest.mark.parametrize(
    ("seconds", "keys", "count"),
    [(8, 0, 3), (6, 0, 2), (8, 4, 5), (16, 20, 10), (2, 7, 2), (2.5, 0, 2)],
)
def test_the_number_follows_length_and_key_frames(seconds, keys, count):
    inside = np.linspace(0, seconds, keys + 2)[1:-1]
    assert segment_count((0, seconds), list(inside), SegmentSettings()) == count


def test_a_clip_too_short_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"too short for segments.min_segments 2.*raise clips.min_seconds"):
        choose_segments((0, 1.5), np.ones((6, 1)), np.arange(6) / 4, [], SegmentSettings())


@given(
    st.floats(0, 500),
    st.floats(6, 16),
    st.sampled_from([2.0, 4.0, 8.0]),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 127), max_size=12),
)
def test_segments_obey_every_rule(start, seconds, fps, seed, keys):
    rng = np.random.default_rng(seed)
    times = start + np.arange(int(np.ceil(seconds * fps))) / fps
    embeddings = rng.standard_normal((len(times), 6))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    key_frames = [float(times[k]) for k in keys if k < len(times)]
    settings = SegmentSettings()
    clip = (start, start + seconds)
    found = choose_segments(clip, embeddings, times, key_frames, settings)
    assert found[0][0] == clip[0] and found[-1][1] == clip[1]
    assert all(left[1] == right[0] for left, right in pairwise(found))
    assert min(b - a for a, b in found) >= settings.min_seconds - 1e-5
    wanted = segment_count(clip, key_frames, settings)
    assert settings.min_segments <= len(found) <= wanted <= settings.max_segments
    if len(found) < wanted:  # nothing left that could be split
        assert max(b - a for a, b in found) < 2 * settings.min_seconds + 1 / fps + 1e-5

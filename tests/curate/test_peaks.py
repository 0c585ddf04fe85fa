"""Key frames are where embeddings jump; clips hold most of them, within a shot and within their lengths."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.curate import peaks
from megatv.curate.settings import ClipSettings

FLAT = ClipSettings(margin_seconds=0.0)


def test_change_is_the_cosine_distance_to_the_frame_before():
    embeddings = np.array([[1, 0], [1, 0], [0, 1], [0, -1], [0.6, -0.8]], np.float32)
    assert peaks.semantic_change(embeddings) == pytest.approx([0, 0, 1, 2, 0.2], abs=1e-6)
    assert len(peaks.semantic_change(np.zeros((0, 4)))) == 0


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([0, 1, 0], [0, 1, 0]),
        ([0, 2, 1, 3, 0], [0, 1, 0, 3, 0]),
        ([0, 3, 1, 2, 0], [0, 3, 0, 1, 0]),
        ([0, 2, 2, 1], [0, 1, 0, 0]),  # of a plateau, the first
        ([0, 2, 2, 3], [0, 0, 0, 0]),  # rises on: no maximum; beyond the last value nothing was seen
        ([5, 1, 2], [0, 0, 0]),
        ([1, 1, 1], [0, 0, 0]),
    ],
)
def test_prominence_by_hand(series, expected):
    assert peaks.prominences(np.array(series)) == pytest.approx(np.array(expected, float))


def test_prominence_agrees_with_scipy():
    signal = pytest.importorskip("scipy.signal")
    for seed in range(20):
        series = np.random.default_rng(seed).integers(0, 6, 40).astype(float)
        found, _ = signal.find_peaks(series, plateau_size=1)
        expected = np.zeros(40)
        expected[found] = signal.peak_prominences(series, found)[0]
        ours = peaks.prominences(series)
        assert sorted(ours[ours > 0]) == pytest.approx(sorted(expected[expected > 0]))


def test_key_frames_are_the_frames_after_a_jump():
    """Three pictures, with noise below the threshold, at 4 frames a second from second 10 on."""
    rng = np.random.default_rng(0)
    pictures = np.eye(8)[[0] * 12 + [1] * 10 + [2] * 10] + 0.002 * rng.standard_normal((32, 8))
    embeddings = pictures / np.linalg.norm(pictures, axis=1, keepdims=True)
    times = 10 + np.arange(32) / 4
    assert peaks.find_key_frames(embeddings, times, ClipSettings()) == [13.0, 15.5]


def test_of_two_near_peaks_the_higher_stays():
    change = np.array([0, 0.0, 0.5, 0.0, 0.6, 0, 0, 0, 0, 0.5, 0, 0])
    times = np.arange(12) / 4
    assert peaks.find_peaks(change, times, ClipSettings()).tolist() == [4, 9]
    assert peaks.find_peaks(change, times, ClipSettings(peak_gap_seconds=0.5)).tolist() == [2, 4, 9]
    assert peaks.find_peaks(change, times, ClipSettings(peak_prominence=0.55)).tolist() == [4]
    assert peaks.find_peaks(np.zeros(0), np.zeros(0), ClipSettings()).tolist() == []


@pytest.mark.parametrize(
    ("shot", "keys", "expected"),
    [
        ((0, 5.9), [1, 2, 3], []),  # too short
        ((0, 7), [1], [(0, 7)]),  # shorter than the window: as a whole
        ((0, 40), [], []),  # nothing happens
        ((0, 40), [20, 21, 22, 25], [(17.5, 25.5)]),  # the earliest window with most
        ((0, 10), [1, 2, 3, 9], [(0, 10)]),  # the rest is too short for a clip, but something happens there
        ((0, 10), [1, 2, 3], [(0, 8)]),
        ((0, 17), [1, 9, 15], [(0, 7.5), (7.5, 15.5)]),
        ((100, 116), [101, 102, 110], [(100, 108), (108, 116)]),
    ],
)
def test_clips_by_hand(shot, keys, expected):
    assert peaks.choose_clips(shot, keys, FLAT) == expected


def test_clips_keep_clear_of_the_ends_of_a_shot():
    assert peaks.choose_clips((3, 10), [5], ClipSettings(margin_seconds=0.25)) == [(3.25, 9.75)]


@given(
    st.floats(0, 1000),
    st.floats(0, 90),
    st.lists(st.floats(0, 1), max_size=40),
    st.integers(0, 3),
)
def test_clips_obey_every_rule(start, seconds, places, min_peaks):
    settings = ClipSettings(min_peaks=min_peaks)
    keys = [start + place * seconds for place in places]
    clips = peaks.choose_clips((start, start + seconds), keys, settings)
    for a, b in clips:
        assert settings.min_seconds - 1e-3 <= b - a <= settings.max_seconds + 1e-3
        assert start + settings.margin_seconds - 1e-6 <= a
        assert b <= start + seconds - settings.margin_seconds + 1e-6
        assert sum(a <= key < b for key in keys) >= min_peaks
    assert all(left[1] <= right[0] + 1e-6 for left, right in pairwise(clips))
    assert clips == peaks.choose_clips((start, start + seconds), keys[::-1], settings)

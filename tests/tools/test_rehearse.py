"""A grid is rehearsed as a command: every rank starts, and holds what was planned."""

import json

import pytest

TOOL = ["tools/rehearse.py", "--config", "configs/toy_world.yaml"]


@pytest.mark.slow
def test_every_rank_starts(python, tmp_path):
    out = tmp_path / "figures.json"
    grid = ["parallel.tp=2", "parallel.pp=2", "log.preview_every=0"]
    done = python(*TOOL, "--gpus", 8, "--out", out, *grid)
    figures = json.loads(out.read_text())
    assert "8 ranks started" in done.stdout and figures["gpus"] == 8
    assert len(figures["weights"]) == 2 and set(figures["median_seconds"]) == {
        "groups",
        "Megatron's groups",
        "model",
        "DeepSpeed's groups and stage",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpus", 0], "--gpus is 0: it must be at least 1"),
        (
            ["--gpus", 2, "--out", "missing/figures.json"],
            "--out missing/figures.json: give the name of a file",
        ),
    ],
)
def test_what_cannot_be_rehearsed_is_said_in_one_line(python, arguments, sentence):
    done = python(*TOOL, *arguments, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and sentence in done.stderr

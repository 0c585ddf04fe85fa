"""The planner as a command: tables, JSON and refusals."""

import json

import pytest

TOOL = ["tools/plan.py", "--config"]


@pytest.mark.slow
def test_a_plan_is_printed_and_written(python, tmp_path):
    out = tmp_path / "plan.json"
    done = python(*TOOL, "configs/8b_sports.yaml", "--gpus", 16, "--json", out)
    report = json.loads(out.read_text())
    assert "PREDICTED, unmeasured" in done.stdout and "Assumed, not measured" in done.stdout
    assert f"{sum(report['parameters'].values()):,} parameters" in done.stdout
    steps = [one["predicted"]["step_seconds"] for one in report["best"]]
    assert steps == sorted(steps) and len(steps) == 5
    assert all(one["memory_bytes"]["peak"] <= 80e9 for one in report["best"])
    assert any("DeepSpeed's pipeline shards" in reason for reason in report["refused"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpus", 0], "--gpus is 0: it must be from 1 to"),
        (["--gpus", 8, "--best", -1], "--best is -1: it must be at least 1"),
        (["--gpus", 8, "--gpu", "a100"], "--gpu a100 is unknown: choose one of a100-80gb"),
        (["--gpus", 10**9], "it must be from 1 to 1,000,000"),
        (["--gpus", 8, "model.heds=1"], "heds"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(python, arguments, sentence):
    done = python(*TOOL, "configs/8b_sports.yaml", *arguments, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and sentence in done.stderr


def test_a_number_of_gpus_that_no_grid_fits(python):
    done = python(*TOOL, "configs/toy_world.yaml", "log.preview_every=0", "--gpus", 7, check=False)
    assert done.returncode != 0 and "Grids that do not go" in done.stdout
    assert "fastest" not in done.stdout  # no table without a line
    assert "error: no grid goes on 7 GPUs; the nearest numbers that work: 4 and 8" in done.stderr

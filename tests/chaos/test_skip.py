"""R6: a non-finite or spiking step touches no weight on any rank, is counted, and its samples are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatv.checkpoint.store import Tensors, checkpoint_dir, verify
from megatv.config import HealthConfig
from megatv.health import SkippedSteps

GRIDS = {
    "zero0": ["parallel.zero=0"],
    "zero2": ["parallel.zero=2"],
    "zero3": ["parallel.zero=3"],
    "zero1-bf16": ["parallel.zero=1", "precision=bf16"],
    "zero2-bf16": ["parallel.zero=2", "precision=bf16"],
    "pp2-zero1": ["parallel.pp=2", "parallel.zero=1"],
    "tp2-zero0": ["parallel.tp=2", "parallel.zero=0"],
    "tp2-zero1": ["parallel.tp=2", "parallel.zero=1"],
}
SPIKES = ("health.spike_window=2", "health.spike_factor=10")
FAULTS = """
bad_loss(rank=1, step=2, value="nan")
bad_gradient(rank=0, step=4, factor=float("inf"))
bad_gradient(rank=0, step=6, factor=1e6)
bad_loss(rank=1, step=7, value="inf")
"""
REASONS = [None, "not finite", None, "not finite", None, "spike", "not finite", None]


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_bad_steps_touch_nothing(grid: str, start: Callable, steps_of: Callable, tmp_path: Path) -> None:
    run = start(tmp_path / "run", "run.steps=8", "checkpoint.keep=8", *SPIKES, *GRIDS[grid], faults=FAULTS)
    assert run.end() == [0, 0], run.log
    records = steps_of(run.directory)
    assert [r.get("skip_reason") for r in records] == REASONS
    assert [r["skipped"] for r in records] == [0, 1, 1, 2, 2, 3, 4, 4]
    for step, (record, reason) in enumerate(zip(records, REASONS, strict=True), start=1):
        if reason is not None:
            samples = record["skipped_samples"]
            assert samples and all(re.fullmatch(r"clip0-\d+", sample) for sample in samples)
            assert f"step {step}: skipped on every rank" in run.log and ", ".join(samples) in run.log
        if step > 1:
            assert unchanged(run.directory, step) == (reason is not None), step
    meta = verify(checkpoint_dir(run.directory, 8))
    assert (meta["skipped"], meta["updates"]) == (4, 4)


def unchanged(run_dir: Path, step: int) -> bool:
    """Whether a step left all weights and both moments as they were; if not, all kinds changed."""
    same = set()
    for kind in ("model", "exp_avg", "exp_avg_sq"):
        old, new = (Tensors(checkpoint_dir(run_dir, s), kind) for s in (step - 1, step))
        assert all(torch.isfinite(new[name]).all() for name in new.names())
        same.add(all(torch.equal(old[name], new[name]) for name in old.names()))
    assert len(same) == 1
    return same.pop()


@pytest.mark.slow
def test_what_counts_as_a_spike_survives_a_kill(start: Callable, same_end: Callable, tmp_path: Path) -> None:
    """The restart knows the norms of steps that it has not done."""
    spike = "bad_gradient(rank=0, step=5, factor=1e6)"
    straight = start(tmp_path / "straight", *SPIKES, faults=spike)
    assert straight.end() == [0, 0] and "is a spike" in straight.log
    killed = start(tmp_path / "killed", *SPIKES, faults="fail_in_write(rank=0, step=4)")
    assert killed.end() != [0, 0]
    again = start(tmp_path / "killed", *SPIKES, faults=spike)
    assert again.end() == [0, 0] and "step_00000003" in again.log and "is a spike" in again.log
    same_end(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
def test_too_many_in_a_row_end_the_run(start: Callable, tmp_path: Path) -> None:
    faults = "".join(f"bad_loss(rank=0, step={step}, value='nan')\n" for step in (2, 3))
    run = start(tmp_path / "run", "health.max_skipped_in_a_row=2", faults=faults)
    assert run.end() == [2, 2]
    (error,) = run.errors()
    assert "step 3: 2 steps in a row were skipped" in error and "clip0-" in error
    last = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2


def test_a_spike_is_judged_by_the_median_of_steps_that_counted() -> None:
    health = HealthConfig(spike_factor=4, spike_window=3)
    skipped = SkippedSteps(health, {"skipped": 0})
    for step, norm in enumerate([1.0, 100.0, 2.0], start=1):
        assert skipped.limit == float("inf")
        assert skipped.count(step, norm, True, []) is None
    assert skipped.limit == 8.0
    assert "norm 9 is a spike (above 8, 4 times" in (skipped.count(4, 9.0, False, ["a"]) or "")
    assert skipped.limit == 8.0  # a spike is no measure for the next
    skipped.count(5, 3.0, True, [])
    assert skipped.limit == 12.0  # of 100, 2, 3
    again = SkippedSteps(health, json.loads(json.dumps(skipped.state())))
    assert (again.limit, again.total, again.state()) == (12.0, 1, skipped.state())
    assert SkippedSteps(HealthConfig(spike_factor=0, spike_window=1), again.state()).limit == float("inf")


def test_only_bad_steps_in_a_row_are_too_many() -> None:
    skipped = SkippedSteps(HealthConfig(max_skipped_in_a_row=2), {"skipped": 0})
    for step, applied in enumerate([False, True, False, True, True, False, True], start=1):
        skipped.count(step, 1.0 if applied else float("inf"), applied, ["a"])
    assert skipped.total == 3
    skipped.count(8, float("inf"), False, ["a"])
    after = SkippedSteps(HealthConfig(max_skipped_in_a_row=2), json.loads(json.dumps(skipped.state())))
    for one in (skipped, after):  # a restart has met the bad step before it as well
        with pytest.raises(ValueError, match="step 9: 2 steps in a row"):
            one.count(9, float("inf"), False, ["b"])

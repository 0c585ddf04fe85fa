"""R1, R2, R3: a run that goes on from a checkpoint ends like one that never stopped, on every grid."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatv.checkpoint.store import checkpoint_dir

STEPS = 4
GRIDS = {
    "zero0": (1, ["parallel.zero=0", "optim.ema=0.9"]),
    "dp2-zero1-ema": (2, ["parallel.zero=1", "optim.ema=0.9"]),
    "dp2-zero2-bf16": (2, ["parallel.zero=2", "precision=bf16", "optim.ema=0.9"]),
    "dp2-zero1-bf16": (2, ["parallel.zero=1", "precision=bf16"]),
    "dp2-zero3": (2, ["parallel.zero=3"]),
    "tp2": (2, ["parallel.tp=2", "parallel.zero=1"]),
    "pp2": (2, ["parallel.pp=2", "parallel.zero=1"]),
    "cp2": (2, ["parallel.cp=2", "parallel.zero=1"]),
    "pp2-tied": (2, ["parallel.pp=2", "parallel.zero=1", "model.tied_embeddings=true"]),
}


def forget_after(run_dir: Path, step: int) -> None:
    """Put a finished run back to what a kill after its checkpoint of `step` leaves: metrics run ahead."""
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(checkpoint_dir(run_dir, later))


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    grid: str, train: Callable, same_end: Callable, tmp_path: Path
) -> None:
    processes, overrides = GRIDS[grid]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(processes, straight, "checkpoint.every=1", *overrides)
    shutil.copytree(straight, resumed)
    forget_after(resumed, 2)
    output = train(processes, resumed, "checkpoint.every=1", *overrides)
    assert "resumed from" in output and "step_00000002" in output
    same_end(straight, resumed)

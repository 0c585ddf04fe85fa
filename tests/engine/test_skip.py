"""R6: a non-finite step touches no weight on any rank, is counted, and its samples are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatv.checkpoint.store import Tensors, checkpoint_dir, verify

POISON = """
import runpy
from megatv.data.loader import Loader
whole = Loader.step
def step(self, number):
    batches = whole(self, number)
    if number == 1 and self.dp_rank == self.dp_size - 1:
        batches[0].clean[0, 0, 0, 0] = float("nan")
        batches[0].noisy[0, 0, 0, 0] = float("nan")
    return batches
Loader.step = step
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (1, ["parallel.zero=0"]),
        (2, ["parallel.zero=0"]),
        (2, ["parallel.zero=1"]),
        (2, ["parallel.zero=3"]),
        (2, ["parallel.zero=1", "precision=bf16"]),
        (2, ["parallel.zero=2", "precision=bf16"]),
        (2, ["parallel.pp=2", "parallel.zero=1"]),
    ],
)
def test_non_finite_step_is_skipped_everywhere(
    processes: int, overrides: list[str], launch: Callable, finish: Callable, tmp_path: Path
) -> None:
    script = tmp_path / "poison.py"
    script.write_text(POISON.format(script=str(Path(__file__).parents[2] / "launch/train.py")))
    run_dir = tmp_path / "run"
    output = finish(launch(processes, run_dir, "checkpoint.every=1", *overrides, script=script))
    assert "step 2: skipped on every rank" in output and "clip0-" in output
    before, after = (Tensors(checkpoint_dir(run_dir, step), "model") for step in (1, 2))
    assert all(torch.equal(before[name], after[name]) for name in before.names())
    later = Tensors(checkpoint_dir(run_dir, 3), "model")
    assert any(not torch.equal(after[name], later[name]) for name in after.names())
    meta = verify(checkpoint_dir(run_dir, 4))
    assert (meta["skipped"], meta["updates"]) == (1, 3)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in records] == [0, 1, 1, 1]
    assert all(torch.isfinite(later[name]).all() for name in later.names())

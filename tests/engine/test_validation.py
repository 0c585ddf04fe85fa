"""Validation means do not depend on the grid, and averaged weights leave the trained ones as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatv.objective.validation import BINS

VALIDATE = ["log.val_every=2", "log.val_rows=4"]


def validations(run_dir: Path) -> list[dict]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "val_text_loss" in r]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("single") / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.zero=3"],
        ["parallel.pp=2"],
        ["parallel.tp=2", "optim.ema=0.9"],
        ["parallel.zero=1", "optim.ema=0.9", "parallel.activation_checkpointing=full"],
    ],
)
def test_two_processes_validate_like_one(
    overrides: list[str], single: Path, train: Callable, tmp_path: Path
) -> None:
    if not single.exists():
        train(1, single, *VALIDATE, "optim.ema=0.9")
    train(2, tmp_path / "run", *VALIDATE, *overrides)
    one, two = validations(single), validations(tmp_path / "run")
    assert [r["step"] for r in two] == [2, 4]
    for a, b in zip(one, two, strict=True):
        shared = {k: a[k] for k in b}
        assert b == pytest.approx(shared, rel=1e-4)
    assert sum(f"val_video_loss_t{i}" in two[0] for i in range(BINS)) == BINS
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    plain = [json.loads(line) for line in (single / "metrics.jsonl").read_text().splitlines()]
    losses = [[r["loss"] for r in records if "loss" in r] for records in (steps, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

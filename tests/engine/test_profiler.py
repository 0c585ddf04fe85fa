"""Traces of the steps asked for, on the ranks that differ; garbage collected when all ranks do."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatv.config import ProfileConfig
from megatv.health import GarbageTogether
from megatv.profiler import Profiler


def place(rank: int, replica_rank: int = 0, tp_rank: int = 0) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, replica_rank=replica_rank, tp_rank=tp_rank)


def run_steps(profiler: Profiler, first: int, last: int) -> None:
    with profiler:
        for step in range(first, last + 1):
            profiler.before(step)
            with torch.profiler.record_function(f"work of step {step}"):
                torch.ones(3).sum()
            profiler.after(step)


@pytest.mark.parametrize(
    ("first", "last", "traced"),
    [(1, 6, [3, 4]), (1, 3, [3]), (4, 6, [4])],
    ids=["whole", "run that stops inside", "run resumed inside"],
)
def test_the_trace_holds_the_steps_asked_for(
    first: int, last: int, traced: list[int], tmp_path: Path
) -> None:
    run_steps(Profiler(ProfileConfig(start=3, steps=2), tmp_path, place(5)), first, last)
    assert [path.name for path in tmp_path.rglob("*.json")] == ["rank_5.json"]
    events = json.loads((tmp_path / "profile/rank_5.json").read_text())["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert {name for name in names if name.startswith("work")} == {f"work of step {n}" for n in traced}


@pytest.mark.parametrize(
    ("config", "mesh"),
    [
        (ProfileConfig(start=3, steps=0), place(0)),
        (ProfileConfig(start=3, steps=2), place(1, replica_rank=1)),
        (ProfileConfig(start=3, steps=2), place(1, tp_rank=1)),
        (ProfileConfig(start=7, steps=2), place(0)),
    ],
    ids=["never", "replica", "tensor-parallel sibling", "after the end"],
)
def test_no_trace(config: ProfileConfig, mesh: SimpleNamespace, tmp_path: Path) -> None:
    run_steps(Profiler(config, tmp_path, mesh), 1, 6)
    assert list(tmp_path.iterdir()) == []


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_garbage_waits_for_its_step() -> None:
    with GarbageTogether() as garbage:
        left = weakref.ref(Cycle())
        for _ in range(3 * gc.get_threshold()[0]):  # enough for the automatic collection
            Cycle()
        garbage.after(GarbageTogether.EVERY - 1)
        assert left() is not None
        garbage.after(GarbageTogether.EVERY)
        assert left() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0

"""Runs that meet a fault, as sentences: `run("fail_at(rank=1, step=4)")`, and what became of each.

The faults are the functions of `faults.py`. Ranks are real processes on gloo with two to a run, forked by
`../forge.py`, which saves them the seconds of imports; where the launcher matters, tests start the real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatv.log import read_metrics

HERE = Path(__file__).parent
STEPS = 5
ALWAYS = (f"run.steps={STEPS}", "checkpoint.every=1", "parallel.zero=1", "batch.examples=4")


@pytest.fixture(scope="session")
def start(
    forge: Callable[..., Any], config_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """start(directory, *overrides, faults="", world=2, ranks=all): begin a run, or go on with one."""
    started: list[Any] = []

    def begin(
        directory: Path, *overrides: str, faults: str = "", world: int = 2, ranks: Sequence[int] | None = None
    ) -> Any:
        out = tmp_path_factory.mktemp("out")
        words = [HERE / "faults.py", "--config", config_file, f"run.dir={directory}", *ALWAYS, *overrides]
        run = forge(out, words, {"FAULTS": faults}, world, ranks)
        run.directory = directory
        started.append(run)
        return run

    yield begin
    for run in started:
        if not (run.out / "codes").exists():
            run.kill()


@pytest.fixture(scope="session")
def undisturbed(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    run = start(tmp_path_factory.mktemp("undisturbed") / "run")
    assert run.end() == [0, 0], run.log
    return run.directory


@pytest.fixture
def comes_back(
    start: Callable[..., Any],
    undisturbed: Path,
    same_end: Callable,
    survived: list,
    request: pytest.FixtureRequest,
) -> Callable[..., str]:
    """comes_back(directory, kept=n): started again it goes on after step n or later and ends undisturbed."""

    def check(directory: Path, *, kept: int) -> str:
        done = max((r["step"] for r in read_metrics(directory / "metrics.jsonl")), default=0)
        again = start(directory)
        assert again.end() == [0, 0], again.log
        found = re.search(r"; resumed from \S+/step_(\d+)", again.log)
        resumed = int(found[1]) if found else 0
        assert resumed >= kept
        same_end(undisturbed, directory)
        lost = f"{done - resumed} finished steps, done again" if done > resumed else "nothing"
        survived.append((request.node.name.partition("[")[2].rstrip("]") or request.node.name, lost))
        return again.log

    return check

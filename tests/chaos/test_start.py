"""Processes that do not fit together: a sentence of each that is there, non-zero exits, nothing written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("ranks", "fault", "sentence"),
    [
        ([0], "", "rank 0: 1 of 2 processes did not come to 127.0.0.1"),
        ([1], "", "rank 1: rank 0 cannot be reached at 127.0.0.1"),
        ([0, 0], "", "rank 0: cannot listen at 127.0.0.1"),
        ([1, 0, 1], "", "rank 1: two processes at 127.0.0.1"),
        ([0, 1], "believes(rank=1, world=3)", "WORLD_SIZE is"),
        ([0, 1], "believes(rank=1, world=1)", "RANK is 1 and WORLD_SIZE 1: ranks are 0 to 0"),
    ],
    ids=["missing", "no-rank-0", "two-rank-0", "two-rank-1", "other-world", "no-such-rank"],
)
def test_who_is_missing_or_wrong(
    ranks: list[int], fault: str, sentence: str, start: Callable, tmp_path: Path
) -> None:
    run = start(tmp_path / "run", faults=f"wait_at_start(4)\n{fault}", ranks=ranks)
    codes = run.end()
    assert 2 in codes, run.log
    assert any(sentence in error for error in run.errors()), run.log
    assert "Traceback" not in run.log
    if len(ranks) < 3:  # else two of them are a whole run, which may begin before the third is refused
        assert 0 not in codes, run.log
        assert not (run.directory / "metrics.jsonl").exists()


def test_two_runs_on_one_directory(start: Callable, tmp_path: Path) -> None:
    first = start(tmp_path / "run", faults="hang_at(rank=0, step=3)")
    while not (tmp_path / "run/checkpoints/step_00000001").exists():
        time.sleep(0.05)
    before = (tmp_path / "run/config.yaml").stat()
    second = start(tmp_path / "run")
    assert second.end() == [2, 2]
    (error,) = second.errors()
    assert "another run is using it" in error and f"process {first.pids[0]}" in error
    assert (tmp_path / "run/config.yaml").stat() == before
    first.kill()

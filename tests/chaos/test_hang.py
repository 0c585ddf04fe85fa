"""R7: a hang ends within its time-out, with a file that names the rank that is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatv.watchdog import EXIT_CODE

SECONDS = 16


@pytest.mark.slow
def test_a_sleeping_rank_is_named_and_ends_the_run(
    start: Callable, comes_back: Callable, tmp_path: Path
) -> None:
    run = start(tmp_path / "run", f"health.watchdog_seconds={SECONDS}", faults="hang_at(rank=1, step=4)")
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        time.sleep(0.05)
    begun = time.monotonic()
    assert EXIT_CODE in run.end(), run.log
    assert time.monotonic() - begun < SECONDS + 10  # what it takes to be ended by a launcher
    (sentence,) = (line for line in run.log.splitlines() if line.startswith("hang: "))
    assert "after step 3; missing: rank 1 at faults.py:" in sentence
    assert "while others wait in all_reduce" in sentence
    for rank in (0, 1):
        report = (run.directory / f"hang/rank_{rank}.txt").read_text()
        assert json.loads(report.partition("\n")[0])["step"] == 3
        assert "faults.py" in report or rank == 0
        assert "engine.py" in report and "loader.py" in report  # the stacks of all threads
    assert sentence in (run.directory / "hang/rank_0.txt").read_text()
    comes_back(run.directory, kept=2)

"""R1, R2: kill -9 anywhere, inside a save too; the restart is bitwise equal to never having stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FAULTS = {
    "fail_at(rank=0, step=1)": 0,
    "fail_at(rank=1, step=3)": 1,
    "fail_in_copy(rank=1, step=3)": 2,
    "fail_in_write(rank=0, step=3)": 2,
    "fail_in_write(rank=1, step=5)": 4,
    "fail_before_rename(step=3)": 2,
    "fail_after_rename(step=3)": 3,
    "fail_in_prune(step=3)": 3,
}
"""Each, and the oldest step that the run may go on from: a save counts a step or two after its step."""


@pytest.mark.parametrize("fault", FAULTS)
def test_killed(fault: str, start: Callable, comes_back: Callable, tmp_path: Path) -> None:
    run = start(tmp_path / "run", faults=fault)
    assert -signal.SIGKILL in run.end(), run.log
    comes_back(run.directory, kept=FAULTS[fault])
    assert not list((run.directory / "checkpoints").glob("*.tmp"))

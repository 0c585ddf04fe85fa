"""The tiny run on real processes, on gloo."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train(on_ranks: Callable[..., str], config_file: Path) -> Callable[..., str]:
    """train(n, run_dir, *arguments): launch/train.py on n forked ranks, which must end well; its output."""

    def run(
        processes: int,
        run_dir: Path,
        *arguments: str,
        config: Path = config_file,
        script: Path = ROOT / "launch/train.py",
    ) -> str:
        return on_ranks(processes, script, "--config", config, f"run.dir={run_dir}", *arguments)

    return run


@pytest.fixture
def refused(forge: Callable, config_file: Path, tmp_path: Path) -> Callable[..., str]:
    """refused(n, run_dir, *arguments): the one sentence for the user of a run that ends with exit code 2."""

    def run(processes: int, run_dir: Path, *arguments: str) -> str:
        words = [ROOT / "launch/train.py", "--config", config_file, f"run.dir={run_dir}", *arguments]
        out = Path(tempfile.mkdtemp(dir=tmp_path))
        run = forge(out, words, world=processes)
        codes = run.end()
        # the first that goes ends the other, as launchers do
        assert 2 in codes and set(codes) <= {2, -signal.SIGTERM}, run.log
        assert len(run.errors()) == 1, run.log
        assert "Traceback (most recent call last)" not in run.log
        return run.errors()[0]

    return run

"""The tiny run on real processes, on gloo."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train(forge: Callable, config_file: Path, tmp_path: Path) -> Callable[..., str]:
    """train(n, run_dir, *arguments): launch/train.py on n forked ranks, which must end well; its output."""
    number = itertools.count()

    def run(
        processes: int,
        run_dir: Path,
        *arguments: str,
        config: Path = config_file,
        script: Path = ROOT / "launch/train.py",
    ) -> str:
        out = tmp_path / f"out{next(number)}"
        out.mkdir()
        run = forge(out, [script, "--config", config, f"run.dir={run_dir}", *arguments], {}, processes)
        codes = run.end()
        assert codes == [0] * processes, f"{codes}\n{run.log[-6000:]}"
        return run.log

    return run


Launch = Callable[..., subprocess.Popen]


@pytest.fixture
def launch(config_file: Path) -> Launch:
    """launch(n, run_dir, *arguments) starts launch/train.py on n processes (torchrun above one)."""

    def start(
        processes: int,
        run_dir: Path,
        *arguments: str,
        config: Path = config_file,
        script: Path = ROOT / "launch/train.py",
    ) -> subprocess.Popen:
        runner = [sys.executable]
        if processes > 1:
            runner += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*runner, str(script), "--config", str(config), f"run.dir={run_dir}"]
        return subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def finish() -> Callable[[subprocess.Popen], str]:
    """finish(process) waits for success and returns what the run printed."""

    def wait(process: subprocess.Popen) -> str:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-6000:]
        return output

    return wait

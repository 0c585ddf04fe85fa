"""Runs that meet a fault, as sentences: `run("fail_at(rank=1, step=4)")`, and what became of each.

The faults are the functions of `faults.py`. Ranks are real processes on gloo with two to a run, forked by
`forge.py`, which saves them the seconds of imports; where the launcher matters, tests start the real one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatv.log import read_metrics

HERE = Path(__file__).parent
STEPS = 5
ALWAYS = (f"run.steps={STEPS}", "checkpoint.every=1", "parallel.zero=1", "batch.examples=4")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
SURVIVED: list[tuple[str, str]] = []


@dataclass
class Run:
    """A run that has been started, its directory and what it left in `out`."""

    directory: Path
    out: Path

    @property
    def pids(self) -> list[int]:
        """The ranks' processes."""
        return json.loads(wait_for(self.out / "pids").read_text())

    @property
    def log(self) -> str:
        """What all ranks have printed."""
        return (self.out / "log").read_text()

    def end(self) -> list[int]:
        """Wait for the ranks' exit codes (minus the signal's number when killed)."""
        return json.loads(wait_for(self.out / "codes").read_text())

    def kill(self) -> None:
        """End what is still there of it."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def errors(self) -> list[str]:
        """The sentences that it told its user."""
        return [line for line in self.log.splitlines() if line.startswith("error: ")]


def wait_for(path: Path, seconds: float = 400) -> Path:
    """`path`, when it exists."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.01)
    return path


@pytest.fixture(scope="session")
def forge() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "forge.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None and process.stdin is not None
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def start(
    forge: subprocess.Popen, config_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Run]]:
    """start(directory, *overrides, faults="", world=2, ranks=all): begin a run, or go on with one."""
    started: list[Run] = []

    def begin(
        directory: Path, *overrides: str, faults: str = "", world: int = 2, ranks: Sequence[int] | None = None
    ) -> Run:
        out = tmp_path_factory.mktemp("out")
        options = ["--config", str(config_file), f"run.dir={directory}", *ALWAYS, *overrides]
        asked = {"out": str(out), "arguments": options, "faults": faults, "world": world}
        assert forge.stdin is not None
        print(json.dumps({**asked, "ranks": ranks or list(range(world))}), file=forge.stdin, flush=True)
        started.append(Run(directory, out))
        return started[-1]

    yield begin
    for run in started:
        if not (run.out / "codes").exists():
            run.kill()


@pytest.fixture(scope="session")
def undisturbed(start: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    run = start(tmp_path_factory.mktemp("undisturbed") / "run")
    assert run.end() == [0, 0], run.log
    return run.directory


@pytest.fixture
def comes_back(
    start: Callable[..., Run], undisturbed: Path, same_end: Callable, request: pytest.FixtureRequest
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
        SURVIVED.append((request.node.name.partition("[")[2].rstrip("]") or request.node.name, lost))
        return again.log

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was survived and what it cost."""
    if SURVIVED:
        terminalreporter.section(
            "survived, with bitwise the losses, weights and moments of an undisturbed run"
        )
        width = max(len(fault) for fault, _ in SURVIVED)
        for fault, lost in SURVIVED:
            terminalreporter.write_line(f"{fault:{width}}  lost: {lost}")

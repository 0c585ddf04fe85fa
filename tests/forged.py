"""Fixtures of processes that start at once: forked, by forge.py, from one that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 400


@dataclass
class ForgedRun:
    """A run that has been started, what it left in `out` and, where a test says so, its run directory."""

    out: Path
    directory: Path | None = None

    @property
    def pids(self) -> list[int]:
        """The ranks' processes."""
        return json.loads(_appear(self.out / "pids").read_text())

    @property
    def log(self) -> str:
        """What all ranks have printed."""
        return (self.out / "log").read_text()

    def end(self) -> list[int]:
        """Wait for the ranks' exit codes (minus the signal's number when killed)."""
        return json.loads(_appear(self.out / "codes").read_text())

    def kill(self) -> None:
        """End what is still there of it."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def errors(self) -> list[str]:
        """The sentences that it told its user."""
        return [line for line in self.log.splitlines() if line.startswith("error: ")]


def _appear(path: Path) -> Path:
    """`path`, when it exists."""
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.01)
    return path


Forge = Callable[..., ForgedRun]


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """forge(out, words, environment={}, world=1, ranks=all): begin a run on forked ranks; see forge.py.

    words: a script or `-m` and a module, and its arguments. environment: over that of the tests.
    """
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forge.py"))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    while "ready" not in process.stdout.readline():
        assert process.poll() is None

    def begin(
        out: Path,
        words: Sequence[object],
        environment: dict[str, str] | None = None,
        world: int = 1,
        ranks: Sequence[int] | None = None,
        alone: bool = False,
    ) -> ForgedRun:
        whole = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | (environment or {})
        job = {"out": str(out), "words": [str(word) for word in words], "environment": whole}
        job |= {"world": world, "ranks": ranks or list(range(world)), "alone": alone}
        print(json.dumps(job), file=process.stdin, flush=True)
        return ForgedRun(out)

    yield begin
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def on_ranks(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """on_ranks(n, *words): run a script on n forked ranks, which must all end well; what they printed."""

    def run(world: int, *words: object) -> str:
        run = forge(tmp_path_factory.mktemp("ranks"), words, world=world)
        codes = run.end()
        assert codes == [0] * world, f"{codes}\n{run.log[-6000:]}"
        return run.log

    return run


@pytest.fixture(scope="session")
def python(
    forge: Forge, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """python(*words): as `command(sys.executable, *words)`, in a forked process that is no rank of any world.

    It saves the seconds of imports; what a person types is the same, but for how modules are found.
    """

    def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        run = forge(tmp_path_factory.mktemp("python"), words, alone=True)
        (code,) = run.end()
        errors = (run.out / "errors").read_text()
        if check:
            assert code == 0, f"{words}\n{run.log[-3000:]}\n{errors[-3000:]}"
        return subprocess.CompletedProcess([str(word) for word in words], code, run.log, errors)

    return run

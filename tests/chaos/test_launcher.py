"""R5 and no orphans, under the real launchers: signals to the job, and their own death by kill -9."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from megatv.checkpoint.store import latest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def alive(run_dir: Path) -> list[int]:
    """Processes of the job that trains there: launchers and ranks, whose session torchrun makes their own."""
    found = []
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if f"run.dir={run_dir}\0".encode() in words.read_bytes():
                found.append(int(words.parent.name))
    return found


@pytest.fixture
def job(config_file: Path, tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen]]:
    """job(launcher, faults): a job of two ranks as its users start it, in a session of its own."""
    started: list[subprocess.Popen] = []

    def begin(launcher: str, faults: str) -> subprocess.Popen:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        ranks = "--num_gpus" if launcher == "deepspeed" else "--nproc_per_node"
        words = [str(BIN / launcher), ranks, "2", "--master_port", str(port), str(HERE / "faults.py")]
        options = ["--config", str(config_file), f"run.dir={tmp_path / 'run'}", "run.steps=5"]
        options += ["checkpoint.every=1000", "parallel.zero=1", "batch.examples=4"]
        environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "FAULTS": faults,
        }
        with (tmp_path / "log").open("w") as log:
            # launchers die of SIGUSR1 unless they begin with it ignored
            shell = ["bash", "-c", 'trap "" USR1; exec "$@"', "bash"]
            started.append(
                subprocess.Popen(
                    [*shell, *words, *options],
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
            )
        return started[-1]

    yield begin
    for process in started:
        for pid in alive(tmp_path / "run"):
            os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("launcher", "fault", "code"),
    [
        ("deepspeed", "signal_at(step=3, name='SIGUSR1', whole_group=True)", 0),
        ("deepspeed", "signal_at(step=3, name='SIGTERM')", 0),
        ("deepspeed", "kill_launcher_at(step=3, up=2)", -signal.SIGKILL),
        ("torchrun", "kill_launcher_at(step=3, up=1)", -signal.SIGKILL),
    ],
)
def test_the_step_is_finished_and_saved(
    launcher: str, fault: str, code: int, job: Callable, comes_back: Callable, tmp_path: Path
) -> None:
    process = job(launcher, fault)
    until = time.monotonic() + 400
    while process.poll() is None or alive(tmp_path / "run"):
        assert time.monotonic() < until, alive(tmp_path / "run")
        time.sleep(0.1)
    log = (tmp_path / "log").read_text()
    assert process.returncode == code, log
    assert "stopped by a signal after step 3" in log
    newest, _ = latest(tmp_path / "run")
    assert newest is not None and newest.name == "step_00000003"
    comes_back(tmp_path / "run", kept=3)

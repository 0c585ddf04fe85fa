"""A studio in a process of its own, whose memory can be measured, and many who come to it at once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# a run that holds a tiny random model: the sampler's tests make it
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "sample/conftest.py")
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)
make_sampler, run_dir = _tiny.make_sampler, _tiny.run_dir

PROGRAM = """
import collections, importlib.util, json, sys
from megatv.studio import limits
for name, value in json.loads(sys.argv[1]).items():
    assert hasattr(limits, name)
    setattr(limits, name, value)
from megatv.studio import cli, serve
if sys.argv[2]:
    cli.main(["--checkpoint", sys.argv[2], "--port", "0"])
else:
    spec = importlib.util.spec_from_file_location("fake", "tests/studio/conftest.py")
    fake = importlib.util.module_from_spec(spec)
    sys.modules["fake"] = fake
    spec.loader.exec_module(fake)
    listening = serve._listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    studio = fake.Studio()
    studio.streams = collections.deque(maxlen=1)  # which keep their frames
    serve.server_of(studio.app).run(sockets=[listening])
"""


class Process:
    """A studio that listens; its limits are those of the module but for some."""

    def __init__(self, checkpoint: Path | None, limits: dict[str, Any]) -> None:
        command = [sys.executable, "-c", PROGRAM, json.dumps(limits), str(checkpoint or "")]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "http://127.0.0.1:" in line)
        self.port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        self.web, self.sockets = f"http://127.0.0.1:{self.port}", f"ws://127.0.0.1:{self.port}/ws/"

    def memory(self) -> int:
        """Its resident memory in bytes, now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def session(self) -> str:
        """A new one."""
        ask = urllib.request.Request(f"{self.web}/api/sessions", method="POST")
        with urllib.request.urlopen(ask, timeout=10) as answer:
            return json.load(answer)["session"]

    def line(self, said: bytes = b"", receives: int | None = None) -> socket.socket:
        """A connection on which `said` was said; `receives`: bytes of its buffer."""
        found = socket.socket()
        if receives is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        found.settimeout(20)
        found.connect(("127.0.0.1", self.port))
        found.sendall(said)
        return found

    def stop(self) -> str:
        """End it; what it had printed."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        assert self.process.stdout is not None
        return self.process.stdout.read()


IMPATIENT = {
    "REQUEST_SECONDS": 1.5,
    "STALLED_SECONDS": 2.0,
    "UPLOAD_SECONDS": 1.5,
    "PING_SECONDS": 1.0,
    "PONG_SECONDS": 2.0,
    "MAX_CONNECTIONS": 60,
    "MESSAGES_PER_SECOND": 1e6,
    "BURST": 1e6,
    "MAX_WAITING": 100,  # on a busy machine all that one take is told may wait at once
    "MAX_WAITING_OF_ONE": 100,
}


@pytest.fixture(scope="session")
def studio() -> Iterator[Process]:
    """One with a fake model, few connections and short time limits; it may print no traceback."""
    yield from _until_the_end(Process(None, IMPATIENT))


@pytest.fixture(scope="session")
def real_studio(run_dir: Path) -> Iterator[Process]:
    """One with a tiny random model, as people start it."""
    yield from _until_the_end(Process(run_dir, {}))


def _until_the_end(process: Process) -> Iterator[Process]:
    yield process
    assert "Traceback" not in process.stop()

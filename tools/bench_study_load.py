"""Load a study's page: many raters at once, connections never finished, readers that hardly read.

    python tools/bench_study_load.py

Serves a study of large videos on loopback in a process of its own, and prints a table; memory is
that of the server's process. Takes half a minute. `tests/load/test_study_load.py` holds the same in tests.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from megatv.data.video import write_video
from megatv.log import main_guard, say
from megatv.untrusted import parse_json

import numpy as np

ANSWERS = dict.fromkeys(("alignment", "fidelity", "quality", "overall"), "tie")
WAIT_SECONDS = 3.0
"""Time limit of the server here, short so that it is reached while measuring: it is 30 s otherwise."""
VIDEO_BYTES = 16 << 20
"""More than the kernel's buffers hold of what a reader leaves."""
HALF_A_HEAD = b"GET /api/study HTTP/1.1\r\nHost: localhost\r\nX-"
HALF_A_BODY = (
    b"POST /api/answers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 9000\r\n\r\n{"item": '
)
SERVE = """
import sys
from megatv.eval.human import cli, run
run.WAIT_SECONDS = float(sys.argv.pop(1))
cli.command()
"""


@dataclass
class Server:
    """A study that is being served. `database`: its answers."""

    port: int
    process: subprocess.Popen[str]
    database: Path

    def ask(self, path: str, token: str = "", body: Any = None, seconds: float = 60) -> tuple[int, Any]:
        """Status and JSON of one request on a connection of its own."""
        headers = {"content-type": "application/json"} | (
            {"authorization": f"Bearer {token}"} if token else {}
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, sent, headers)
            reply = connection.getresponse()
            return reply.status, parse_json(reply.read())
        finally:
            connection.close()

    def join(self, name: str) -> str:
        """The token of somebody new."""
        status, told = self.ask("/api/raters", body={"name": name})
        if status != 200:
            raise ValueError(f"{name} could not join: {told}")
        return told["token"]

    def megabytes(self) -> float:
        """What the process has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024


@contextmanager
def served(folder: Path, items: int = 2, wait_seconds: float = WAIT_SECONDS) -> Iterator[Server]:
    """An open study of `items` pairs of videos of VIDEO_BYTES, in a process of its own on loopback."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    for system in ("one", "other"):
        (folder / system).mkdir()
        for number in range(items):
            path = folder / system / f"clip-{number}.mp4"
            if (folder / "one/clip-0.mp4").exists():
                os.link(folder / "one/clip-0.mp4", path)
            else:
                write_video(path, frames)
                with path.open(
                    "ab"
                ) as file:  # a box of nothing (ISO/IEC 14496-12, 8.1.2), which players skip
                    file.write(VIDEO_BYTES.to_bytes(4, "big") + b"free" + bytes(VIDEO_BYTES - 8))
            path.with_suffix(".txt").write_text("Noise.")
    systems = [{"name": system, "videos": str(folder / system)} for system in ("one", "other")]
    study = {"kind": "pairwise", "systems": systems, "database": str(folder / "answers.sqlite"), "checks": 1}
    study |= {"joins": "open", "max_raters": 500, "joins_per_hour": 500, "raters_per_item": 100}
    (folder / "study.yaml").write_text(json.dumps(study))
    command = [
        sys.executable,
        "-c",
        SERVE,
        str(wait_seconds),
        "serve",
        str(folder / "study.yaml"),
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not (found := re.search(r"open http://127\.0\.0\.1:(\d+)/", text)):
            line = process.stdout.readline()
            if not line:
                raise ValueError(f"the study could not be served: {text}")
            text += line
        yield Server(int(found[1]), process, folder / "answers.sqlite")
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@dataclass
class Crowd:
    """What became of raters who judged at once: comments sent by (rater, item), statuses, seconds each."""

    sent: dict[tuple[int, str], str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def raters_at_once(server: Server, people: int, name: str = "crowd") -> Crowd:
    """Everybody joins, looks at a part of each video, and answers until nothing is left."""
    crowd, start = Crowd(), threading.Barrier(people)

    def timed(*request: Any) -> tuple[int, Any]:
        begun = time.perf_counter()
        status, told = server.ask(*request)
        crowd.seconds.append(time.perf_counter() - begun)
        crowd.statuses[status] += 1
        return status, told

    def judge(index: int) -> None:
        start.wait(60)
        status, told = timed("/api/raters", "", {"name": f"{name} {index}"})
        token, number = told["token"], told["rater"]["number"]
        status, told = timed("/api/next", token)
        while status == 200 and told["task"]:
            item = told["task"]["item"]
            comment = f"{name} {index} on {item}"
            status, told = timed(
                "/api/answers", token, {"item": item, "answers": ANSWERS, "comment": comment}
            )
            crowd.sent[number, item] = comment

    with ThreadPoolExecutor(people) as pool:
        list(pool.map(judge, range(people)))
    return crowd


@dataclass
class Watch:
    """The server while others load it: its memory, and how long one rater waits for an answer."""

    megabytes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def watch(server: Server, seconds: float) -> Watch:
    """Ask for the next task again and again, which reads and writes the answers' file."""
    seen, token, end = Watch(), server.join("honest"), time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        status, told = server.ask("/api/next", token, seconds=20)
        seen.seconds.append(time.perf_counter() - begun)
        if status != 200:
            raise ValueError(f"a rater was not served: {status} {told}")
        seen.megabytes.append(server.megabytes())
        time.sleep(0.02)
    return seen


def connected(
    server: Server, stack: ExitStack, sent: bytes, receive_bytes: int | None = None
) -> socket.socket:
    """An open connection on which `sent` was sent."""
    one = stack.enter_context(socket.socket())
    if receive_bytes:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    one.settimeout(20)
    one.connect(("127.0.0.1", server.port))
    one.sendall(sent)
    return one


def ended(one: socket.socket, seconds: float, whole: int | None = None) -> bool:
    """Whether the server closes the connection within `seconds`, before it has sent `whole` bytes."""
    one.settimeout(seconds)
    said = 0
    try:
        while piece := one.recv(1 << 20):
            said += len(piece)
    except TimeoutError:
        return False
    except OSError:
        pass
    return whole is None or said < whole


def unfinished(server: Server, count: int, seconds: float = 2 * WAIT_SECONDS) -> tuple[Watch, int]:
    """`count` connections with half a head or body; what a rater sees meanwhile, and how many ended."""
    with ExitStack() as stack:
        halves = (HALF_A_HEAD, HALF_A_BODY)
        open_ = [connected(server, stack, halves[n % 2]) for n in range(count)]
        seen = watch(server, seconds)
        return seen, sum(ended(one, 2) for one in open_)


def slow_readers(server: Server, count: int, seconds: float = 2 * WAIT_SECONDS) -> tuple[Watch, int]:
    """`count` viewers who read a byte a second; what a rater sees meanwhile, and how many ended."""
    url = server.ask("/api/next", server.join("slow"))[1]["task"]["videos"][0]
    with ExitStack() as stack:
        request = f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        open_ = [connected(server, stack, request, 4096) for _ in range(count)]
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(1):
                for one in open_:
                    with suppress(OSError):
                        one.recv(1)

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            seen = watch(server, seconds)
        finally:
            stop.set()
            thread.join()
        return seen, sum(ended(one, 2, VIDEO_BYTES) for one in open_)


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), items=10) as server:
        watch(server, 1)
        before = server.megabytes()
        begun = time.perf_counter()
        crowd = raters_at_once(server, 50)
        spent = time.perf_counter() - begun
        rows = [_row("50 raters at once, 11 tasks each", crowd.seconds, before, server.megabytes())]
        tried: list[tuple[str, Callable[[], tuple[Watch, int]]]] = [
            ("500 connections that never finish", lambda: unfinished(server, 500)),
            ("50 viewers who read a byte a second", lambda: slow_readers(server, 50)),
        ]
        for what, load in tried:
            before = server.megabytes()
            seen, gone = load()
            rows.append(_row(f"{what} ({gone} ended)", seen.seconds, before, max(seen.megabytes)))
    machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}"
    refused = crowd.statuses.total() - crowd.statuses[200]
    day, answers, requests = time.strftime("%Y-%m-%d"), len(crowd.sent), crowd.statuses.total()
    say(f"Measured {day} on {machine}, by `tools/bench_study_load.py`. A rater's wait is for one request,")
    say(f"memory is the server's. The 50 raters gave {answers} answers in {spent:.1f} s; {refused} of")
    say(f"their {requests} requests were refused.\n")
    say("| load | median wait ms | longest wait ms | MiB before | MiB at most |")
    say("|---|---|---|---|---|")
    for row in rows:
        say(row)


def _row(what: str, seconds: list[float], before: float, most: float) -> str:
    waits = f"{1e3 * median(seconds):.0f} | {1e3 * max(seconds):.0f}"
    return f"| {what} | {waits} | {before:.0f} | {most:.0f} |"


if __name__ == "__main__":
    main_guard(main)

"""Load a studio with many viewers and connections: memory and time, as a Markdown table (for docs/load.md).

    python tools/bench_studio_load.py --checkpoint RUN

Starts `python -m megatv.studio` on the checkpoint and connects on loopback: many viewers, readers that do not
read, connections that send nothing, large pictures, downloads. Memory is the studio's resident memory,
with that of the process in which it decodes a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megatv.log import main_guard
from megatv.studio import limits
from megatv.untrusted import parse_json

from PIL import Image
from websockets.asyncio.client import connect

MIB = 1 << 20
HANDSHAKE = (
    "GET /ws/{} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Studio:
    """The process, its address and its memory. rows: of the table."""

    def __init__(self, checkpoint: str) -> None:
        command = [sys.executable, "-m", "megatv.studio", "--checkpoint", checkpoint, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address = re.compile(r"http://127\.0\.0\.1:(\d+)")
        found = next((m for line in self.process.stdout if (m := address.search(line))), None)
        if found is None:
            raise ValueError(f"--checkpoint {checkpoint}: the studio did not start")
        self.port = int(found[1])
        self.rows: list[tuple[str, str, float, float, float]] = []

    def memory(self) -> float:
        """In MiB, now, with that of the process that decodes a picture."""
        process = Path(f"/proc/{self.process.pid}")
        pids = [self.process.pid]
        for children in process.glob("task/*/children"):
            with contextlib.suppress(OSError):  # a thread that has ended
                pids += map(int, children.read_text().split())
        total = 0.0
        for pid in pids:
            with contextlib.suppress(OSError, IndexError):  # a process that has
                status = Path(f"/proc/{pid}/status").read_text()
                total += int(status.partition("VmRSS:")[2].split()[0]) / 1024
        return total

    def session(self) -> str:
        """A new one."""
        with urllib.request.urlopen(self.ask("/api/sessions", b"")) as answer:
            return parse_json(answer.read())["session"]

    def ask(self, path: str, data: bytes | None = None) -> urllib.request.Request:
        """A request; with data, a POST."""
        return urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)

    def watch(self, session: str) -> Any:
        """A viewer's connection."""
        return connect(f"ws://127.0.0.1:{self.port}/ws/{session}", compression=None, max_size=None)

    def line(self, said: bytes) -> socket.socket:
        """A connection on which `said` is sent, with a small receive buffer."""
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.connect(("127.0.0.1", self.port))
        found.sendall(said)
        return found

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[Callable[[str], None]]:
        """Measure what is done meanwhile; the yielded function notes a result."""
        noted: list[str] = []
        before, most, done = self.memory(), [0.0], threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                most[0] = max(most[0], self.memory())

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield noted.append
        finally:
            done.set()
            looking.join()
        self.rows.append((name, "; ".join(noted), before, most[0], self.memory()))
        print(name, *noted, flush=True, file=sys.stderr)


def main() -> None:
    """Apply each load in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a checkpoint directory, or a run")
    studio = Studio(parser.parse_args().checkpoint)
    try:
        session = studio.session()
        asyncio.run(_crowd(studio, studio.session(), 1))
        asyncio.run(_crowd(studio, studio.session(), 50))
        asyncio.run(_crowd(studio, studio.session(), limits.MAX_VIEWERS))
        _unread(studio, session)
        _silence(studio)
        _pictures(studio, session)
        _downloads(studio, session)
    finally:
        studio.process.terminate()
        studio.process.wait()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores\n")
    print("| load | result | MiB before | most | after |\n|---|---|---|---|---|")
    for name, noted, before, most, after in studio.rows:
        print(f"| {name} | {noted} | {before:.0f} | {most:.0f} | {after:.0f} |")


async def _crowd(studio: Studio, session: str, count: int) -> None:
    """Viewers of one session, one of which makes a video."""
    wish = {"type": "make", "prompt": "", "seconds": 3.0, "steps": 2, "temperature": 1.0, "cfg": 1.0}

    async def watch(tab: Any) -> float:
        while True:
            message = await tab.recv()
            if isinstance(message, str) and '"finished"' in message:
                return time.monotonic()

    with studio.row(f"viewers of one session: {count}; a video of 3 s") as note:
        async with contextlib.AsyncExitStack() as stack:
            tabs = [await stack.enter_async_context(studio.watch(session)) for _ in range(count)]
            began = time.monotonic()
            await tabs[0].send(json.dumps(wish))
            ends = await asyncio.gather(*map(watch, tabs))
        first, last = min(ends) - began, max(ends) - min(ends)
        note(f"the first saw its end after {first:.1f} s, the last {last:.2f} s later")


def _unread(studio: Studio, session: str) -> None:
    """Viewers that do not read, beside one that does."""

    async def fill() -> None:
        wish = {"type": "make", "prompt": "", "seconds": 64.0, "steps": 1, "temperature": 1.0, "cfg": 1.0}
        async with studio.watch(session) as tab:
            for number in range(3):
                await tab.send(json.dumps(wish))
                while f'"take": {number}, "status": "finished"' not in str(await tab.recv()):
                    pass

    asyncio.run(fill())
    with studio.row("50 viewers of 3 videos of 64 s that read a byte a second") as note:
        lines = [studio.line(HANDSHAKE.format(session).encode()) for _ in range(50)]
        began = time.monotonic()
        while (left := _left(studio)) > 1 and time.monotonic() - began < 90:
            for line in lines:
                with contextlib.suppress(OSError):
                    line.recv(1, socket.MSG_DONTWAIT)
            time.sleep(1)
        note(f"{len(lines) - max(0, left - 1)} cut off after {time.monotonic() - began:.0f} s")
    for line in lines:
        line.close()


def _left(studio: Studio) -> int:
    """Connections to the studio that are established."""
    return len(
        [
            line
            for line in Path(f"/proc/{studio.process.pid}/net/tcp").read_text().splitlines()[1:]
            if int(line.split()[1].partition(":")[2], 16) == studio.port and line.split()[3] == "01"
        ]
    )


def _silence(studio: Studio) -> None:
    """Connections that send half a request and no more."""
    with studio.row("1,000 connections with half a request") as note:
        lines = [studio.line(b"GET / HTTP/1.1\r\nhost") for _ in range(1000)]
        began = time.monotonic()
        with urllib.request.urlopen(studio.ask("/")) as answer:
            answer.read()
        note(f"the page came after {time.monotonic() - began:.2f} s")
        while _left(studio):
            time.sleep(0.1)
        note(f"all were ended after {time.monotonic() - began:.0f} s")
    for line in lines:
        line.close()


def _pictures(studio: Studio, session: str) -> None:
    """Large pictures at once."""

    def send(side: int) -> int:
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, "PNG")
        try:
            with urllib.request.urlopen(
                studio.ask(f"/api/sessions/{session}/picture", file.getvalue())
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    for side in (4000, 8000):
        with studio.row(f"8 pictures of {side}x{side} at once") as note, ThreadPoolExecutor(8) as pool:
            began = time.monotonic()
            statuses = sorted(pool.map(send, [side] * 8))
            note(f"status {statuses[0]} to {statuses[-1]} within {time.monotonic() - began:.1f} s")


def _downloads(studio: Studio, session: str) -> None:
    """The same video again and again."""

    def get(_: int) -> int:
        with urllib.request.urlopen(studio.ask(f"/api/sessions/{session}/takes/0/video.mp4")) as answer:
            return len(answer.read())

    with studio.row("40 downloads of a video of 64 s, 4 at once") as note, ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        get(0)
        first = time.monotonic() - began
        sizes = set(pool.map(get, range(40)))
        note(
            f"{max(sizes) / MIB:.1f} MiB; the first took {first:.1f} s, all {time.monotonic() - began:.1f} s"
        )


if __name__ == "__main__":
    main_guard(main)

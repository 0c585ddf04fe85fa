"""The study's page under load, on loopback: all are served, every answer is kept once, memory stays flat.

`tools/bench_study_load.py` measures what is only bounded here.
"""

from __future__ import annotations

import importlib.util
import resource
import socket
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("bench_study_load", ROOT / "tools/bench_study_load.py")
bench = importlib.util.module_from_spec(_spec)
sys.modules["bench_study_load"] = bench
_spec.loader.exec_module(bench)

pytestmark = pytest.mark.timeout(120)
FLAT_MEGABYTES = 64
"""A server that kept what it was sent, or a video for each of its readers, would take hundreds."""
PATIENT_SECONDS = 15
"""More than any request may wait, on a busy machine too."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with bench.served(tmp_path_factory.mktemp("study")) as server:
        yield server


def kept(server):
    """Comments by (rater's number, item), as the file has them."""
    with closing(sqlite3.connect(server.database)) as connection:
        rows = connection.execute(
            "SELECT people.number, item, comment FROM tasks JOIN people ON people.id = tasks.rater "
            "WHERE answers IS NOT NULL"
        ).fetchall()
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
    assert sound == "ok" and len(rows) == len({row[:2] for row in rows})
    return {(number, item): comment for number, item, comment in rows}


def answer(server, token, item, comment=""):
    return server.ask("/api/answers", token, {"item": item, "answers": bench.ANSWERS, "comment": comment})


def task_of(server, token):
    status, told = server.ask("/api/next", token)
    assert status == 200
    return told["task"]["item"]


def test_fifty_raters_at_once_lose_nothing(server):
    before = server.megabytes()
    crowd = bench.raters_at_once(server, 50)
    assert set(crowd.statuses) == {200}
    assert len(crowd.sent) == 50 * 3  # two pairs and a check each
    assert crowd.sent.items() <= kept(server).items()
    assert max(crowd.seconds) < PATIENT_SECONDS
    assert server.megabytes() - before < FLAT_MEGABYTES


def test_connections_that_never_finish_give_way(server):
    before = server.megabytes()
    seen, ended = bench.unfinished(server, 450)  # more than there are places
    assert ended == 450
    assert len(seen.seconds) > 5 and max(seen.seconds) < PATIENT_SECONDS
    assert max(seen.megabytes) - before < FLAT_MEGABYTES


def test_a_body_that_comes_too_slowly_is_no_request(server):
    with ExitStack() as stack:
        one = bench.connected(server, stack, bench.HALF_A_BODY)
        begun = time.monotonic()
        while time.monotonic() - begun < 3 * bench.WAIT_SECONDS:
            try:
                one.sendall(b"x")  # a byte now and then is no progress
            except OSError:
                break
            time.sleep(0.2)
        assert time.monotonic() - begun < 2 * bench.WAIT_SECONDS
    assert server.ask("/api/study")[0] == 200


def test_viewers_who_read_a_byte_a_second_hold_nothing(server):
    before = server.megabytes()
    seen, ended = bench.slow_readers(server, 40)
    assert ended == 40
    assert len(seen.seconds) > 5 and max(seen.seconds) < PATIENT_SECONDS
    assert max(seen.megabytes) - before < FLAT_MEGABYTES


def test_a_viewer_who_reads_slowly_but_steadily_sees_all(server):
    url = server.ask("/api/next", server.join("steady"))[1]["task"]["videos"][0]
    with ExitStack() as stack:
        one = bench.connected(server, stack, f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += one.recv(1)
        left = int(head.lower().partition(b"content-length: ")[2].split()[0])
        pause = 1.5 * bench.WAIT_SECONDS * (1 << 16) / left
        begun = time.monotonic()
        while left:
            piece = one.recv(min(left, 1 << 16), socket.MSG_WAITALL)
            assert piece, "the server hung up"
            left -= len(piece)
            time.sleep(pause)
        assert time.monotonic() - begun > bench.WAIT_SECONDS


def test_a_disk_without_room_refuses_and_loses_nothing(server):
    token = server.join("Ada")
    item = task_of(server, token)
    assert answer(server, token, item, "before")[0] == 200
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))  # no file may grow
    try:
        for _ in range(3):
            status, told = answer(server, token, item, "when the disk was full")
            assert status == 503 and "cannot be written now" in told["error"] and "\n" not in told["error"]
        assert server.ask("/api/raters", body={"name": "Eve"})[0] == 503
        assert server.ask(f"/api/tasks/{item}", token)[1]["task"]["comment"] == "before"
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    assert "before" in kept(server).values() and "when the disk was full" not in kept(server).values()
    assert answer(server, token, item, "afterwards")[0] == 200
    assert "afterwards" in kept(server).values() and "before" not in kept(server).values()


def test_a_file_that_another_process_holds_is_waited_for_and_then_refused(server):
    tokens = [server.join(f"patient {number}") for number in range(12)]
    items = [task_of(server, token) for token in tokens]
    url = server.ask(f"/api/tasks/{items[0]}", tokens[0])[1]["task"]["videos"][0]

    def send(index):
        begun = time.monotonic()
        status, told = answer(server, tokens[index], items[index], f"locked {index}")
        return status, told, time.monotonic() - begun

    with (
        closing(sqlite3.connect(server.database, isolation_level=None)) as holder,
        ThreadPoolExecutor(12) as pool,
    ):
        holder.execute("BEGIN IMMEDIATE")
        sent = [pool.submit(send, index) for index in range(12)]
        time.sleep(0.5)
        assert server.ask("/api/me", tokens[0], seconds=PATIENT_SECONDS)[0] == 200  # who only reads is served
        with ExitStack() as stack:
            request = f"GET {url} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-9\r\n\r\n"
            assert b" 206 " in bench.connected(server, stack, request.encode()).recv(40)
        for status, told, seconds in (one.result() for one in sent):
            assert status == 503 and "try again in a moment" in told["error"] and seconds < PATIENT_SECONDS
        assert not any(comment.startswith("locked") for comment in kept(server).values())
        waiting = pool.submit(send, 0)
        time.sleep(0.5)
        holder.execute("ROLLBACK")
        assert waiting.result()[0] == 200  # it was held for a moment only
    assert [send(index)[0] for index in range(12)] == [200] * 12
    assert {f"locked {index}" for index in range(12)} <= set(kept(server).values())


def test_a_restart_in_the_midst_keeps_what_was_saved(server, tmp_path):
    """A server that is killed, not ended, has written all that it called saved."""
    folder = tmp_path / "study"
    folder.mkdir()
    with bench.served(folder) as other:
        crowd = bench.raters_at_once(other, 8, "killed")
        other.process.kill()
        other.process.wait()
        assert crowd.sent.items() == kept(other).items() and len(crowd.sent) == 24

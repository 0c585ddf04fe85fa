"""Connections that never finish, never read or are too many; on loopback, with short time limits."""

import asyncio
import logging
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from megatv.connections import MAX_REFUSED, REFUSAL, Bounds, Server, WebSocket

pytestmark = pytest.mark.timeout(60)
BOUNDS = Bounds(
    total=8,
    of_one=6,
    request_seconds=1.0,
    body_seconds=0.6,
    stalled_seconds=0.6,
    max_unread_bytes=4 << 20,
    max_parts=8,
)
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def app(scope, receive, send):
    """`/` answers at once, `/slow` after 1.5 s, `/large` with 64 MiB, `/body` when it has all of the request.

    A WebSocket echoes, or floods.
    """
    if scope["type"] == "websocket":
        await receive()
        while scope["path"] == "/never":
            if (await receive())["type"] == "websocket.disconnect":
                return
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            while message.get("text") == "flood":
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
            await send({"type": "websocket.send", "text": message.get("text") or ""})
        return
    await asyncio.sleep(1.5 * (scope["path"] == "/slow"))
    while scope["path"] == "/body" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-it", b"is us")]})
    for _ in range(1024 * (scope["path"] == "/large")):
        await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.fixture
def server():
    found = Server(
        app, BOUNDS, log_level="error", lifespan="off", ws_max_size=16 << 10, timeout_graceful_shutdown=1
    )
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=found.run, args=([listening],))
    thread.start()
    found.address = listening.getsockname()
    yield found
    found.should_exit = True
    thread.join()


@pytest.fixture
def errors(server):
    """What the server and the event loop log as errors."""
    found = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = found.append
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    yield found
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).removeHandler(handler)


@contextmanager
def line(server, said=b""):
    with closing(socket.create_connection(server.address, timeout=10)) as found:
        found.sendall(said)
        yield found


def seconds_to_end(found):
    """Until the server ends the connection; what it sent is thrown away."""
    began = time.monotonic()
    try:
        while found.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


def hear(found):
    """One answer, or what came before the connection's end."""
    answer = b""
    while not answer.endswith(b"\r\n0\r\n\r\n") and (piece := found.recv(1000)):
        answer += piece
    return answer


def answers(server):
    with line(server, GET) as found:
        return b"is us" in hear(found)


def settled(server, count):
    """Wait until so many connections are left."""
    while len(server.server_state.connections) != count:
        time.sleep(0.05)


@pytest.mark.parametrize("said", [b"", b"GET / HT", GET[:-2], UPGRADE[:-2], GET, GET * 3])
def test_a_connection_that_asks_nothing_more_is_ended(server, said):
    with line(server, said) as found:
        assert seconds_to_end(found) < 5
    settled(server, 0)


@pytest.mark.parametrize("drip", [b"x", b"x: y\r\n"])
def test_dripping_does_not_win_time(server, drip):
    with line(server, GET[:-2]) as found, pytest.raises(OSError):
        for _ in range(100):
            found.sendall(drip)
            time.sleep(0.1)


def test_dripping_the_body_of_an_answered_request_does_not_either(server):
    said = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000\r\n\r\n"
    with line(server, said) as found, pytest.raises(OSError):
        for _ in range(100):
            found.sendall(b"x")
            time.sleep(0.1)


def test_nor_does_dripping_the_body_that_an_answer_waits_for(server):
    said = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000\r\n\r\n"
    began = time.monotonic()
    with line(server, said) as found, pytest.raises(OSError):
        for _ in range(100):
            found.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - began < 5
    settled(server, 0)


def test_who_asks_on_is_served_on_and_who_waits_is_not_hurried(server):
    with line(server) as busy, line(server, GET.replace(b"/ ", b"/slow ")) as waits:
        for _ in range(12):
            busy.sendall(GET)
            assert b"is us" in hear(busy)
            time.sleep(0.1)
        assert b"is us" in hear(waits)


HALF_A_BODY = b"POST /slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc"


@pytest.mark.parametrize("others", [b"", b"GET / HT", UPGRADE[:-2], HALF_A_BODY, GET])
def test_those_who_never_finish_lock_nobody_out(server, others):
    idle = [socket.create_connection(server.address) for _ in range(30)]
    try:
        for found in idle:
            found.sendall(others)
            assert answers(server)
        assert len(server.server_state.connections) <= BOUNDS.of_one
    finally:
        for found in idle:
            found.close()


def test_when_all_are_served_a_newcomer_is_refused_with_a_sentence(server):
    target = "ws://{}:{}".format(*server.address)
    with ExitStack() as stack:
        tabs = [stack.enter_context(connect(target)) for _ in range(BOUNDS.of_one)]
        for _ in range(40):  # who says nothing is refused, too
            stack.enter_context(line(server))
        with line(server, GET) as found:
            answer = hear(found)
        assert answer.startswith(b"HTTP/1.1 503") and answer.endswith(REFUSAL.encode())
        assert len(server.server_state.connections) <= BOUNDS.of_one + MAX_REFUSED
        tabs.pop().close()
        while not answers(server):
            time.sleep(0.05)
        for tab in tabs:
            tab.send("still here")
            assert tab.recv(timeout=10) == "still here"


@pytest.mark.parametrize("said", [GET.replace(b"/ ", b"/large "), UPGRADE])
def test_a_reader_who_does_not_read_is_cut_off(server, said):
    with line(server) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.sendall(said)
        if said == UPGRADE:
            assert found.recv(1000)
            found.sendall(bytes([0x81, 0x80 | 5]) + bytes(4) + b"flood")
        for _ in range(100):
            if not server.server_state.connections:
                break
            found.recv(1)  # a byte at a time is not reading
            time.sleep(0.05)
        settled(server, 0)


def test_a_reader_who_reads_a_little_and_then_nothing_is_cut_off(server):
    """Below the mark at which writing stops, though not below the one at which it goes on."""
    with line(server) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.sendall(GET.replace(b"/ ", b"/large "))
        (served,) = one_served(server)
        while served.transport.get_write_buffer_size() > served.transport.get_write_buffer_limits()[1]:
            assert found.recv(1 << 16)
        settled(server, 0)


def test_the_reader_waited_for_longest_makes_room(server):
    """Before a newer connection that has said nothing: who is least likely to go on goes first."""
    with ExitStack() as stack:
        reader = stack.enter_context(line(server))
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(GET.replace(b"/ ", b"/large "))
        (served,) = one_served(server)
        target = "ws://{}:{}".format(*server.address)
        tabs = [stack.enter_context(connect(target)) for _ in range(BOUNDS.of_one - 2)]
        newer = stack.enter_context(line(server))
        while len(server.server_state.connections) != BOUNDS.of_one:
            time.sleep(0.01)
        assert answers(server)
        assert served not in server.server_state.connections
        newer.sendall(GET)
        assert b"is us" in hear(newer)
        for tab in tabs:
            tab.send("still here")
            assert tab.recv(timeout=10) == "still here"


def one_served(server):
    """The server's one connection, as soon as what it was sent piles up."""
    while not any(
        connection.awaited and connection.awaited[0] == "reader"
        for connection in list(server.server_state.connections)
    ):
        time.sleep(0.01)
    return server.server_state.connections


def test_a_server_without_websockets_has_none():
    bounds = replace(BOUNDS, max_parts=0)
    assert Server(app, bounds).config.ws == "none" and Server(app, BOUNDS).config.ws is WebSocket


def test_a_reader_who_is_slow_but_reads_is_not(server):
    with line(server, GET.replace(b"/ ", b"/large ")) as found:
        read, began = 0, time.monotonic()
        while read < 64 << 20:
            piece = found.recv(1 << 20)
            assert piece, "it was cut off"
            read += len(piece)
            time.sleep(0.02 if time.monotonic() - began < 3 else 0)
        assert time.monotonic() - began > BOUNDS.stalled_seconds


def test_pings_that_nobody_reads_the_answers_of(server):
    with line(server, UPGRADE) as found:
        assert found.recv(1000)
        pings = (bytes([0x89, 0x80 | 100]) + bytes(4) + bytes(100)) * 600
        with pytest.raises(OSError):
            for _ in range(10_000):
                found.sendall(pings)
    settled(server, 0)


def test_a_message_in_endless_parts(server):
    with line(server, UPGRADE) as found:
        assert found.recv(1000)
        found.sendall(bytes([0x01, 0x80]) + bytes(4))
        with pytest.raises(OSError):
            for _ in range(10_000):
                found.sendall((bytes([0x00, 0x80]) + bytes(4)) * 1000)
                time.sleep(0.01)
    settled(server, 0)
    target = "ws://{}:{}".format(*server.address)
    with connect(target) as tab:
        tab.send(["a", "b", "c"])
        assert tab.recv(timeout=10) == "abc"
    with pytest.raises(ConnectionClosed), connect(target) as tab:
        tab.send("x" * (16 << 10 | 1))
        tab.recv(timeout=10)


def test_a_head_that_does_not_end(server):
    with line(server) as found, pytest.raises(OSError):
        for _ in range(1000):
            found.sendall(b"GET /" + b"x" * 10_000)
            time.sleep(0.005)


def test_a_clock_that_jumps_hurries_nobody(server, monkeypatch):
    target = "ws://{}:{}".format(*server.address)
    with connect(target) as tab, line(server) as busy:
        for now in (0.0, 4e9, 1e9):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            busy.sendall(GET)
            assert b"is us" in hear(busy)
            time.sleep(0.2)
            tab.send("here")
            assert tab.recv(timeout=10) == "here"
    with line(server) as found:
        assert seconds_to_end(found) < 5


@pytest.mark.parametrize(
    "said",
    [
        UPGRADE[:-2] + b"content-length: 5\r\n\r\n",
        UPGRADE[:-2] + b"content-length: 5\r\n\r\nhe",
        UPGRADE[:-2] + b"content-length: 0\r\n\r\n",
        UPGRADE[:-2] + b"transfer-encoding: chunked\r\n\r\n",
        UPGRADE[:-2] + b"a: b\r\n" * 200 + b"\r\n",
        UPGRADE[:-2] + b"a: " + b"b" * 9000 + b"\r\n\r\n",
        UPGRADE.replace(b"GET /ws", b"GET /" + b"w" * 9000),
        UPGRADE.replace(b"GET", b"POST"),
    ],
    ids=[
        "a body",
        "half a body",
        "an empty body",
        "chunks",
        "many lines",
        "a long line",
        "a long path",
        "POST",
    ],
)
def test_an_upgrade_of_which_no_websocket_is_made_is_refused(server, said):
    with line(server, said) as found:
        answer = hear(found)
        while piece := found.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 4") or (b"POST" in said and b"is us" in answer)
    settled(server, 0)


def test_a_websocket_that_is_not_accepted_is_ended_and_makes_room(server, errors):
    hold = UPGRADE.replace(b"/ws", b"/never")
    with ExitStack() as stack:
        lines = [stack.enter_context(line(server, hold)) for _ in range(BOUNDS.of_one + 2)]
        assert answers(server)
        for found in lines:
            assert seconds_to_end(found) < 5
    settled(server, 0)
    assert not errors


CHUNKED = b"POST /body HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
PONG = bytes([0x8A, 0x80]) + bytes(4)


@pytest.mark.parametrize(
    ("head", "small"),
    [
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED.replace(b"/body", b"/"), b"1\r\nx\r\n"),
        (UPGRADE, PONG),
        (UPGRADE, bytes([0x89, 0x80]) + bytes(4)),
        (UPGRADE, bytes([0x81, 0x80]) + bytes(4)),
    ],
    ids=["chunks", "chunks after the answer", "pongs", "pings", "empty messages"],
)
def test_many_small_pieces_end_a_connection(server, errors, head, small):
    sent = 0
    with line(server, head) as found, pytest.raises(OSError):
        if head == UPGRADE:
            assert found.recv(1000)
        for _ in range(1000):
            found.sendall(small * 1000)
            sent += 1000
            time.sleep(0.001)
    assert sent < 100_000
    settled(server, 0)
    assert answers(server)
    assert not errors


def test_bodies_of_chunks_that_are_large_enough_and_frames_that_come_in_time_pass(server):
    with line(server, CHUNKED) as found:
        for _ in range(2000):
            found.sendall(b"40\r\n" + b"x" * 64 + b"\r\n")
        found.sendall(b"0\r\n\r\n")
        assert b"is us" in hear(found)
    with line(server) as found:
        for _ in range(400):  # short bodies, one after the other
            found.sendall(CHUNKED + b"1\r\nx\r\n0\r\n\r\n")
            assert b"is us" in hear(found)
    with connect("ws://{}:{}".format(*server.address)) as tab:
        for _ in range(600):
            tab.send("a")
            assert tab.recv(timeout=10) == "a"
            time.sleep(0.001)


@pytest.mark.parametrize(
    "said",
    [
        CHUNKED.replace(b"/body", b"/") + b"zz\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1;" + b"x" * 100_000,
        CHUNKED.replace(b"/body", b"/") + b"1;" + b"x" * 100_000,
        CHUNKED.replace(b"/body", b"/large") + b"zz\r\n",
        CHUNKED.replace(b"/body", b"/slow") + b"zz\r\n",
        UPGRADE + bytes([0x81, 0x82]) + bytes(4) + b"\xff\xfe",
        UPGRADE + bytes([0x83, 0x80]) + bytes(4),
    ],
    ids=[
        "late chunk",
        "chunk",
        "extension",
        "late extension",
        "while sending",
        "while waiting",
        "text",
        "frame",
    ],
)
@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_what_breaks_the_protocol_is_a_quiet_end(server, errors, said, wait):
    head, _, rest = said.partition(b"\r\n\r\n")
    try:
        with line(server, head + b"\r\n\r\n") as found:
            time.sleep(wait)
            found.sendall(rest)
            seconds_to_end(found)
    except OSError:
        pass
    settled(server, 0)
    time.sleep(1.5 * (b"/slow" in said))
    assert not errors


def test_a_head_that_comes_at_once_is_bounded_too(server):
    bounded = GET[:-2] + b"".join(b"a%d: %s\r\n" % (i, b"b" * 1000) for i in range(100)) + b"\r\n"
    with line(server, bounded) as found:
        assert b"HTTP/1.1 4" in found.recv(1000)

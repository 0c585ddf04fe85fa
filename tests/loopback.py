"""A server on loopback with short time limits, and connections on which a test says what it likes."""

import asyncio
import logging
import socket
import threading
import time
from contextlib import closing, contextmanager

import pytest

from megatv.connections import Bounds, Server
from megatv.guard import Guard

BOUNDS = Bounds(
    total=6,
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
CHUNKED = b"POST /body HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


async def app(scope, receive, send):
    """`/` answers at once, `/slow` after 1.5 s, `/large` with 64 MiB, `/body` when it has all of the request,
    `/fault` never.

    A WebSocket echoes, or floods.
    """
    assert scope["path"] != "/fault"
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


@contextmanager
def serving(bounds):
    """A server with the application above, guarded as ours are; `address` is where it listens."""
    guarded = Guard(app, frozenset({"localhost"}))
    found = Server(guarded, bounds, lifespan="off", ws_max_size=16 << 10, timeout_graceful_shutdown=1)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=found.run, args=([listening],))
    thread.start()
    found.address = listening.getsockname()
    try:
        yield found
    finally:
        found.should_exit = True
        thread.join()


@pytest.fixture
def server():
    with serving(BOUNDS) as found:
        yield found


@pytest.fixture
def errors():
    """What the server and the event loop log."""
    found = []
    handler = logging.Handler()
    handler.emit = found.append
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    yield found
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).removeHandler(handler)


@contextmanager
def line(server, said=b"", source="127.0.0.1"):
    """A connection from an address of this machine's."""
    with closing(socket.create_connection(server.address, timeout=10, source_address=(source, 0))) as found:
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


def answers(server, source="127.0.0.1"):
    """Whether a newcomer is answered."""
    with line(server, GET, source) as found:
        return b"is us" in hear(found)


def settled(server, count):
    """Wait until so many connections are left."""
    while len(server.server_state.connections) != count:
        time.sleep(0.05)


def one_served(server):
    """The server's one connection, as soon as what it was sent piles up."""
    while not any(
        connection.awaited and connection.awaited[0] == "reader"
        for connection in list(server.server_state.connections)
    ):
        time.sleep(0.01)
    return server.server_state.connections

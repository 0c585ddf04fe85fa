"""A server that outlives its guests: bounds on connections, and an end to those that never finish.

Uvicorn waits without end for a request that was begun and for a reader that does not read. Here a connection
is cut off when it

    has not sent the head of its next request in time, however slowly it drips
    leaves what it was sent unread for too long, or lets too much of it pile up
    is to be closed and does not close
    sends one WebSocket message in very many parts

When all places are taken, a newcomer takes that of the oldest one that has not sent all of its request; where
everybody is being served, it is refused with a sentence.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

REFUSAL = "all connections of this server are in use: close a tab, or try again in a moment"
MAX_REFUSED = 16
"""Connections that are still to be told so."""


@dataclass(frozen=True)
class Bounds:
    """total, of_one    connections in all, and from one address
    request_seconds     for the head of a request, counted from the connection's start or the last answer
    stalled_seconds     for which a reader may leave more unread than the system's buffers hold
    max_unread_bytes    of one connection      max_parts  of one WebSocket message
    """

    total: int
    of_one: int
    request_seconds: float
    stalled_seconds: float
    max_unread_bytes: int
    max_parts: int


class _Watched(asyncio.Protocol):
    """drained: how often all but a rest of what it was sent was read, after it had piled up."""

    drained = 0
    refused = False

    def resume_writing(self) -> None:
        """The transport's word for it."""
        self.drained += 1
        super().resume_writing()


class WebSocket(_Watched, WebSocketsSansIOProtocol):
    """A connection that became a WebSocket."""


class Http(_Watched, H11Protocol):
    """A connection that is let in, or answered with REFUSAL whatever it asks."""

    def __init__(self, bounds: Bounds, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.bounds = bounds
        self.began = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, in another's place if need be."""
        super().connection_made(transport)
        for most, whose in ((self.bounds.of_one, _host(self)), (self.bounds.total, None)):
            others = [c for c in self._others() if not c.refused and whose in (None, _host(c))]
            if len(others) >= most and not _end_oldest([c for c in others if _is_unfinished(c)]):
                self.refused = True
                break
        refused = [c for c in self._others() if c.refused]
        if len(refused) >= MAX_REFUSED:
            _end_oldest(refused)

    def data_received(self, data: bytes) -> None:
        """Part of a request; a refusal waits for it, or the end of the connection would overtake it."""
        if not self.refused:
            super().data_received(data)
            return
        body = REFUSAL.encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _others(self) -> list[Any]:
        return [connection for connection in self.connections if connection is not self]


class Server(uvicorn.Server):
    """Uvicorn's, which looks after its connections at every tick, ten times a second.

    settings   of `uvicorn.Config`; `http` and `ws` are its own
    """

    def __init__(self, app: Any, bounds: Bounds, **settings: Any) -> None:
        self.bounds = bounds
        self._since: dict[Any, tuple[object, float]] = {}
        http: Any = functools.partial(Http, bounds)
        super().__init__(uvicorn.Config(app, http=http, ws=WebSocket, **settings))

    async def on_tick(self, counter: int) -> bool:
        """Cut off who keeps us waiting."""
        now = time.monotonic()
        before, self._since = self._since, {}
        for connection in list(self.server_state.connections):
            state, patience = self._state(connection)
            if patience is None:
                continue
            found, since = before.get(connection, (None, now))
            self._since[connection] = state, since if found == state else now
            if now - self._since[connection][1] > patience:
                connection.transport.abort()
        return await super().on_tick(counter)

    def _state(self, connection: Any) -> tuple[object, float | None]:
        """What it keeps us waiting for, and for how many seconds it may; None: for nothing."""
        bounds, transport = self.bounds, connection.transport
        unread = transport.get_write_buffer_size()
        if unread > bounds.max_unread_bytes or len(getattr(connection, "frames", ())) > bounds.max_parts:
            return "too much", 0.0
        if transport.is_closing():
            return "closing", bounds.stalled_seconds
        if unread > transport.get_write_buffer_limits()[1]:
            return ("unread", connection.drained), bounds.stalled_seconds
        if _asks_nothing(connection):
            return ("idle", connection.cycle), bounds.request_seconds
        return None, None


def _end_oldest(connections: list[Any]) -> bool:
    """End the oldest connection now, not when the loop comes to it. False when there is none."""
    if connections:
        oldest = min(connections, key=lambda connection: connection.began)
        oldest.connections.discard(oldest)
        oldest.transport.abort()
    return bool(connections)


def _host(connection: Any) -> str | None:
    return connection.client[0] if connection.client else None


def _asks_nothing(connection: Any) -> bool:
    """Whether it is between two requests, or in the head of one."""
    if isinstance(connection, WebSocket):
        return False
    return connection.cycle is None or connection.cycle.response_complete


def _is_unfinished(connection: Any) -> bool:
    """Whether it has not sent all of a request."""
    return _asks_nothing(connection) or (isinstance(connection, Http) and connection.cycle.more_body)

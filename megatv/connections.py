"""A server with bounds on its connections, which ends those that never finish.

Uvicorn waits without end for a request that was begun and for a reader that does not read. Here a connection
is cut off when it

    has not sent the head or the body of its request in time, however slowly it arrives
    leaves what it was sent unread for too long, or lets too much of it pile up
    is to be closed and does not close
    sends one WebSocket message in very many parts, or very many frames at once
    sends a body in very many small pieces
    asks for a WebSocket with a body, or in another way that none is made of

When all places are taken, a newcomer takes one from the network (`megatv.network`) that has most of them, or
from one that has as many as its own: that of the connection which has kept the server waiting longest. Where
the server waits for none of them, a network that has more places than the newcomer's gives one nevertheless;
otherwise the newcomer is refused with a sentence.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.server import ServerProtocol

from megatv.descriptors import allow_all, say_exhaustion_once
from megatv.guard import HEADERS
from megatv.network import network_of

REFUSAL = "all connections of this server are in use: close a tab, or try again in a moment"
MAX_REFUSED = 16
"""Connections that are still to be told so."""
UNREADABLE = "this is no HTTP request that the server can read"

MAX_HEAD_BYTES = 16 << 10
"""The head of one request, where the server's settings say nothing else."""
FREE_PIECES, MIN_PIECE_BYTES = 256, 64
"""In so many pieces a body may come whatever their size; of more, the mean size must be the second."""
BACKLOG = 128
"""Newcomers that the system holds; asyncio lets in so many before it is asked whether they have places."""
MAX_FRAMES = 256
"""WebSocket frames of one connection in a tick. Each takes microseconds from everybody else."""
NO_WEBSOCKET = "no WebSocket is made of this request: send a plain upgrade without a body"


@dataclass(frozen=True)
class Bounds:
    """total               connections in all
    request_seconds     for the head of a request, counted from the connection's start or the last answer
    body_seconds        for the body of a request
    stalled_seconds     for which a reader may leave more unread than the system's buffers hold
    max_unread_bytes    of one connection
    max_parts           of one WebSocket message; 0 where no WebSockets are served
    """

    total: int
    request_seconds: float
    body_seconds: float
    stalled_seconds: float
    max_unread_bytes: int
    max_parts: int = 0


class _Watched(asyncio.Protocol):
    """A connection that is asked what it keeps the server waiting for.

    awaited, since   for what, and from when on by `time.monotonic`; None: for nothing
    unread, drained  whether what it was sent piles up, and how often all but a rest of that was read
    """

    awaited: tuple[object, ...] | None = None
    since = 0.0
    unread = refused = False
    drained = 0

    def pause_writing(self) -> None:
        """The transport's word for a reader who is behind."""
        self.unread = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """The transport's word for one who has caught up."""
        self.unread = False
        self.drained += 1
        super().resume_writing()

    def look(self) -> None:
        """Bring `awaited` and `since` up to date."""
        awaited = self._awaits()
        if awaited != self.awaited:
            self.awaited, self.since = awaited, time.monotonic()

    def is_late(self, bounds: Bounds) -> bool:
        """Whether it has kept the server waiting for too long, or has it hold too much."""
        transport: Any = self.transport  # type: ignore[attr-defined]
        if transport.get_write_buffer_size() > bounds.max_unread_bytes:
            return True
        if len(getattr(self, "frames", ())) > bounds.max_parts:
            return True
        self.look()
        if self.awaited is None:
            return False
        seconds = {"head": bounds.request_seconds, "body": bounds.body_seconds}
        patience = seconds.get(str(self.awaited[0]), bounds.stalled_seconds)
        return time.monotonic() - self.since > patience

    def _awaits(self) -> tuple[object, ...] | None:
        transport: Any = self.transport  # type: ignore[attr-defined]
        if transport.is_closing():
            return ("end",)
        # a connection that becomes a WebSocket is not told what its answers before had left unread
        unread = self.unread or transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]
        return ("reader", self.drained) if unread else None


class _Frames(ServerProtocol):
    """Reads frames, so many in a tick. `Server.on_tick` sets the count back."""

    count = 0

    def reject(self, status: Any, text: str) -> Response:
        """An answer instead of a WebSocket, guarded like every other."""
        answer = super().reject(status, text)
        for name, value in HEADERS.items():
            answer.headers[name.decode()] = value.decode()
        return answer

    def recv_frame(self, frame: Frame) -> None:
        """One frame has come."""
        self.count += 1
        if self.count > MAX_FRAMES:
            raise ProtocolError("too many frames at once")
        super().recv_frame(frame)


class WebSocket(_Watched, WebSocketsSansIOProtocol):
    """A connection that became a WebSocket, or will be one as soon as the application accepts it."""

    conn: _Frames

    def __init__(self, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        config = self.config
        extensions = self.conn.available_extensions
        self.conn = _Frames(extensions=extensions, max_size=config.ws_max_size, logger=self.logger)

    def data_received(self, data: bytes) -> None:
        """The whole head of the request, then frames; nobody may send one before the handshake is done."""
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.write(_plain("400 Bad Request", NO_WEBSOCKET))
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """A whole message has come. One of text that is no UTF-8 ends the connection."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(1007, "not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection's end; uvicorn removes it from a set that it may have left before."""
        self.connections.add(self)
        super().connection_lost(exc)

    def _awaits(self) -> tuple[object, ...] | None:
        return super()._awaits() or (None if self.handshake_complete else ("head",))


class _Requests(h11.Connection):
    """Reads requests: no head beyond `most` bytes, and no body in very many small pieces.

    h11 alone bounds a head only while the end of it has not come. Of two lengths it believes `chunked`, in
    HTTP/1.0 too: a proxy that believes the other takes the rest for the next request, which may be another
    person's (RFC 9112, 6.1 and 11.2).
    """

    def __init__(self, most: int) -> None:
        super().__init__(h11.SERVER, most)
        self._most = most
        self._first = True
        self._pieces = self._bytes = 0

    def next_event(self) -> Any:
        """What h11 reads next. Raises RemoteProtocolError for what is beyond the bounds."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._first = True
            size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
            if size > self._most:
                self._refuse(f"the head of a request has at most {self._most} bytes", 431)
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                self._refuse("a request says in one way how long it is", 400)
        elif isinstance(event, h11.Data):
            self._pieces += not self._first  # any body may be short, and has one piece then
            self._bytes += len(event.data)
            self._first = False
            if self._pieces > FREE_PIECES and self._bytes < self._pieces * MIN_PIECE_BYTES:
                self._refuse("the body comes in too many small pieces", 400)
        return event

    def _refuse(self, reason: str, status: int) -> None:
        self._process_error(self.their_role)
        raise h11.RemoteProtocolError(reason, error_status_hint=status)


class Http(_Watched, H11Protocol):
    """A connection that is let in, or answered with REFUSAL whatever it asks."""

    def __init__(self, bounds: Bounds, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.bounds = bounds
        self.conn = _Requests(self.config.h11_max_incomplete_event_size or MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, in another's place if need be."""
        super().connection_made(transport)
        self.look()
        admitted = [connection for connection in self._others() if not connection.refused]
        self.refused = len(admitted) >= self.bounds.total and not _make_room(self, admitted)
        refused = [c for c in self._others() if c.refused]
        if len(refused) >= MAX_REFUSED:
            _end_longest(refused)

    def data_received(self, data: bytes) -> None:
        """Part of a request; a refusal waits for it, or the end of the connection would overtake it."""
        if not self.refused:
            super().data_received(data)
            return
        self.transport.write(_plain("503 Service Unavailable", REFUSAL))
        self.transport.close()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Pass the connection on, unless a body is to come, for which a WebSocket would wait without end."""
        if {b"content-length", b"transfer-encoding"} & {name for name, _ in event.headers}:
            self.transport.write(_plain("400 Bad Request", NO_WEBSOCKET))
            self.transport.close()
        else:
            super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """A request that cannot be read: said where no answer was begun; one on its way is not sent."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_plain("400 Bad Request", UNREADABLE))
        self.transport.close()

    def _awaits(self) -> tuple[object, ...] | None:
        if found := super()._awaits():
            return found
        if self.cycle is None or self.cycle.response_complete:
            return "head", self.cycle
        return ("body", self.cycle) if self.cycle.more_body else None

    def _others(self) -> list[Any]:
        return [connection for connection in self.connections if connection is not self]


class Server(uvicorn.Server):
    """Uvicorn's, which looks after its connections at every tick, ten times a second.

    settings   of `uvicorn.Config`; `http`, `ws` and `backlog` are its own

    It logs faults of ours, not those of requests, of which anybody could send any number. A proxy's word on
    who asks counts only where `proxy_headers` says so.
    """

    def __init__(self, app: Any, bounds: Bounds, **settings: Any) -> None:
        self.bounds = bounds
        http: Any = functools.partial(Http, bounds)
        ws: Any = WebSocket if bounds.max_parts else "none"
        usual = {"log_level": "error", "access_log": False, "proxy_headers": False, "server_header": False}
        super().__init__(uvicorn.Config(app, http=http, ws=ws, backlog=BACKLOG, **{**usual, **settings}))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, with as many file descriptors as the system grants."""
        allow_all()
        say_exhaustion_once(asyncio.get_running_loop())
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Cut off who keeps us waiting."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Watched) and connection.is_late(self.bounds):
                connection.transport.abort()
            if isinstance(connection, WebSocket):
                connection.conn.count = 0
        return await super().on_tick(counter)


def _make_room(newcomer: Http, others: list[Any]) -> bool:
    """End one of the others, if fairness allows it."""
    held = Counter(map(_network, (newcomer, *others)))
    own, most = held[_network(newcomer)], max(held[_network(other)] for other in others)
    for other in others:
        other.look()
    crowd = [other for other in others if held[_network(other)] >= max(own, most)]
    waiting = [other for other in crowd if other.awaited]
    return _end_longest(waiting or (crowd if most > own else []))


def _end_longest(connections: list[Any]) -> bool:
    """End the one whose state has lasted longest; now, not when the loop comes to it. False without any."""
    for connection in sorted(connections, key=lambda connection: connection.since)[:1]:
        connection.connections.discard(connection)
        connection.transport.abort()
    return bool(connections)


def _plain(status: str, sentence: str) -> bytes:
    """An answer after which the connection ends."""
    body = sentence.encode()
    lines = {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": str(len(body)).encode(),
        b"connection": b"close",
        b"cache-control": b"no-store",
        **HEADERS,
    }
    head = b"".join(name + b": " + value + b"\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n".encode() + head + b"\r\n" + body


def _network(connection: Any) -> str:
    return network_of(connection.client[0] if connection.client else None)

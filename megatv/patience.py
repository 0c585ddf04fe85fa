"""HTTP connections that nobody finishes: each wait for the other side ends, and so does their number.

A server waits for a request's head, for its body, and for the reader of its answer. Uvicorn waits for all
three without end, and a wait costs the other side nothing. Here each of them ends after WAIT_SECONDS; where
all places are taken, whoever has kept the server waiting longest makes room for the newest.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT_SECONDS = 30.0
"""For one head, one body, or one reader to take what was written (some 64 KiB): 2 KiB a second."""
MAX_CONNECTIONS = 400
"""With a file each, they are fewer than the 1,024 descriptors that a process usually has."""


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol (`Config.http`) with an end to its waits."""

    awaited: str | None = None
    """What we wait for: `head`, `body`, `reader`; None while the application works."""
    since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection has come, perhaps in the place of another one."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = (c for c in self.connections if isinstance(c, PatientProtocol) and c.awaited)
            longest = min(waiting, key=lambda connection: connection.since)
            self.connections.discard(longest)
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._stop()

    def data_received(self, data: bytes) -> None:
        """Part of a head or body has come."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """All of an answer is written, though not yet read."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The reader is behind."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        self._watch()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Another protocol takes over."""
        super().handle_websocket_upgrade(event)
        self._stop()

    def _watch(self) -> None:
        """Start the clock anew when we wait for something else than before."""
        if self.transport.get_protocol() is not self:
            return
        if self.flow.write_paused:
            awaited: str | None = "reader"
        elif self.cycle is None or self.cycle.response_complete:
            awaited = "head"
        else:
            awaited = "body" if self.cycle.more_body else None
        if awaited != self.awaited:
            self._stop()
            self.awaited, self.since = awaited, self.loop.time()
            if awaited:
                self._timer = self.loop.call_later(WAIT_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

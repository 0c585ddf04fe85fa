"""How many requests the page works on at once: of one rater, of one network (`megatv.network`), and of all.

All of them wait in one queue for 40 threads (AnyIO's default), and a request whose connection has ended stays
in it. Each counts until it is done, so that who sends requests and drops them does not fill the queue.

A rater is told by the secret in the token, right or wrong: with a right one a request may cost much, such as
choosing the next task, for which all answers are read while nobody else can write.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from megatv.eval.human.raters import read_bearer, read_token
from megatv.network import network_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_OF_RATER = 4
"""Requests with one secret: a page sends one after the other."""
MAX_OF_ONE = 64
"""Requests of one network: those of a room of people behind one address."""
MAX_REQUESTS = 200
"""Requests of all. While there are so many, each network may have an equal share of this number."""
RETRY_SECONDS = 2
REFUSAL = "too many requests at once: try again in a moment"


class InFlight:
    """ASGI middleware. Refuses a request (503) whose rater or network has its share in work."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.count: Counter[str] = Counter()
        """Requests in work by network; only networks that have some."""
        self.of_rater: Counter[str] = Counter()
        """The same by secret, of those requests that have one."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = scope.get("client")
        network = network_of(client[0] if client else None)
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        _, secret = read_token(read_bearer(said.decode("latin-1")))
        if self.of_rater[secret] >= MAX_OF_RATER or self.count[network] >= self._share(network):
            await _refuse(send)
            return
        self.count[network] += 1
        self.of_rater[secret] += bool(secret)
        try:
            await self.app(scope, receive, send)
        finally:
            self.count[network] -= 1
            self.of_rater[secret] -= bool(secret)
            self.count, self.of_rater = +self.count, +self.of_rater  # which forget who has none

    def _share(self, network: str) -> int:
        if self.count.total() < MAX_REQUESTS:
            return MAX_OF_ONE
        return MAX_REQUESTS // len(self.count.keys() | {network})


async def _refuse(send: Send) -> None:
    body = json.dumps({"error": REFUSAL}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(RETRY_SECONDS).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})

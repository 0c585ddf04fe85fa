"""No large body comes in: one over the limit is refused before the application sees it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 16_384


class BodyLimit:
    """ASGI middleware. A body is read whole before the application starts; one over the limit is refused."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read: list[Message] = []
        size = 0
        while not read or read[-1].get("more_body"):
            read.append(await receive())
            if read[-1]["type"] == "http.disconnect":
                return
            size += len(read[-1].get("body", b""))
            if size > MAX_BODY_BYTES:
                await _refuse(send)
                return

        async def again() -> Message:
            return read.pop(0) if read else await receive()

        await self.app(scope, again, send)


async def _refuse(send: Send) -> None:
    body = json.dumps(
        {"error": f"a request has at most {MAX_BODY_BYTES} bytes: shorten the comment"}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body})

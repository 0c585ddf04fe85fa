"""Who may ask a local server: its own page, opened under this machine's name; nobody else's page.

Any web page that a person visits can send requests to this machine, and open WebSockets to it, with the
person's browser as its hand. Browsers say in `Origin` whose page it is. And a foreign name may be made to
point here (DNS rebinding); then `Host` is that name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable, Callable], Awaitable[None]]

HEADERS = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    b"base-uri 'none'; form-action 'self'",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
"""A page loads nothing from other sites, no other site may embed it, and no Referer tells its address."""
_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(:[0-9]*)?", re.ASCII)
"""RFC 9110, 7.2; in lower case."""
FAULT = "this is a fault of the server: it has printed what went wrong"


def refusal(headers: dict[bytes, bytes], names: frozenset[str]) -> str | None:
    """Why a request with these headers is refused, in one sentence; None when it is allowed.

    names   under which the server may be opened: `own_names`, and the public ones of a proxy before it
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if not _is_ours(host, names):
        return (
            f"this server does not answer to the name {host[:80]!r}: open it by its address or as localhost"
        )
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
        return "this request comes from another site's page: only the server's own page may ask"
    return None


def _is_ours(host: str, names: frozenset[str]) -> bool:
    """An address cannot be made to point elsewhere; a name can, unless it is one of this machine's."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["address"] or found["name"]
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name in names


def own_names(host: str, public_name: str | None = None) -> frozenset[str]:
    """The names under which a server that listens on `host` may be opened.

    public_name   under which a proxy serves it (`--public-name`). Raises ValueError for what is no name
    """
    if public_name and not re.fullmatch(r"[a-zA-Z0-9.-]+", public_name):
        raise ValueError(f"--public-name {public_name}: give the name alone, such as videos.example.org")
    names = ("localhost", socket.gethostname(), host, public_name or "")
    return frozenset(name.lower() for name in names if name)


class Guard:
    """Stands before the application: refuses strangers, and adds HEADERS to every answer.

    names   see `refusal`       cache   what browsers may keep (`cache-control`)
    """

    def __init__(self, app: Application, names: frozenset[str], cache: bytes = b"no-store") -> None:
        self.app, self.names = app, names
        self.headers = [*HEADERS.items(), (b"cache-control", cache)]

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        """One request, as ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reason = refusal(dict(scope["headers"]), self.names)
        started = False

        async def send_guarded(message: Scope) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        async def say(status: int, sentence: str) -> None:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send_guarded({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": sentence.encode()})

        if reason is None:
            try:
                await self.app(scope, receive, send_guarded)
            except Exception:
                if scope["type"] == "http" and not started:
                    await say(500, FAULT)
                raise  # the server logs it
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason})  # before accept: HTTP 403
        else:
            await say(403, reason)

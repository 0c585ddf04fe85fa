"""One bounded POST of JSON: the answer's status and bytes, within a total time and a size.

No redirect is followed and no proxy of the environment is used, so that a key goes to the address that was
checked and to no other. Certificates are checked by `SSL_CERT_FILE` where that is set, as for a cluster's own
authority. The answer must come uncompressed: a few bytes could become gigabytes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatv.in_time import in_time

MAX_ANSWER_BYTES = 1 << 20
"""Some hundred thousand tokens of text."""


@dataclass(frozen=True)
class Answer:
    """HTTP status, body, and what `Retry-After` says."""

    status: int
    body: bytes
    retry_after: str


class PostError(Exception):
    """No answer came, for the reason in words."""


def post(url: str, body: Any, headers: Mapping[str, str], seconds: float) -> Answer:
    """Send `body` as JSON and wait at most `seconds` from the first step to the last byte.

    Raises PostError. asyncio.run alone would wait for the system's resolver, which nothing ends.
    """
    data = json.dumps(body).encode()
    try:
        return in_time(seconds, lambda: asyncio.run(asyncio.wait_for(_post(url, data, headers), seconds)))
    except TimeoutError:
        raise PostError(f"does not answer within {seconds:g} s") from None


async def _post(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    import httpx

    headers = {**headers, "Content-Type": "application/json", "Accept-Encoding": "identity"}
    try:
        verify = _certificates() if url.lower().startswith("https:") else False
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None, verify=verify) as client,
            client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise PostError("compresses its answer, which was not asked for")
            data = bytearray()
            async for piece in answer.aiter_raw():
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise PostError(f"sends more than {MAX_ANSWER_BYTES >> 20} MiB for one answer")
            return Answer(answer.status_code, bytes(data), answer.headers.get("retry-after", ""))
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise PostError(str(error) or type(error).__name__) from None


@cache
def _certificates() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()

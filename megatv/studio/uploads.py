"""First pictures on their way from a page to the model."""

from __future__ import annotations

import asyncio
from collections import Counter

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from megatv.data.picture import Picture, decode_picture
from megatv.network import network_of
from megatv.studio import limits

TOO_LARGE = f"the picture is larger than {limits.MAX_PICTURE_BYTES >> 20} MiB"
BUSY = "too many pictures are on their way to the studio: try again in a moment"
BUSY_OF_ONE = "too many pictures are on their way from your address: try again in a moment"


class Uploads:
    """Bounds what all uploads hold together, and has one picture decoded at a time."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()  # bytes by network
        self._waiting = 0
        self._decoding = asyncio.Lock()

    async def receive(self, request: Request, width: int, height: int) -> Picture:
        """The picture in a request's body. Raises HTTPException with one sentence."""
        data = bytearray()
        network = network_of(request.client.host if request.client else None)
        try:
            async with asyncio.timeout(limits.UPLOAD_SECONDS):
                await self._read(request, data, network)
            if self._waiting >= limits.MAX_PICTURES_WAITING:
                raise HTTPException(503, BUSY)
            self._waiting += 1
            try:
                async with self._decoding:
                    return await run_in_threadpool(decode_picture, bytes(data), width, height)
            finally:
                self._waiting -= 1
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except TimeoutError:
            reason = f"the picture has not arrived within {limits.UPLOAD_SECONDS:g} s: try again"
            raise HTTPException(408, reason) from None
        finally:
            self._held[network] -= len(data)
            self._held += Counter()  # forget who holds nothing

    async def _read(self, request: Request, data: bytearray, network: str) -> None:
        """The body, read no further than its limits."""
        if int(request.headers.get("content-length", 0)) > limits.MAX_PICTURE_BYTES:
            raise HTTPException(413, TOO_LARGE)
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "the connection ended before the picture did")
            piece, more = message.get("body", b""), message.get("more_body", False)
            data += piece
            self._held[network] += len(piece)
            if len(data) > limits.MAX_PICTURE_BYTES:
                raise HTTPException(413, TOO_LARGE)
            if self._held[network] > limits.MAX_UPLOAD_BYTES_OF_ONE:
                raise HTTPException(503, BUSY_OF_ONE)
            if self._held.total() > limits.MAX_UPLOAD_BYTES:
                raise HTTPException(503, BUSY)

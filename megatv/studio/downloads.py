"""Takes as files: encoded one at a time, kept while there is room, sent no faster than they are read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from fastapi import HTTPException, Response
from fastapi.concurrency import run_in_threadpool

from megatv.data.video import encode_clips
from megatv.sample.render import enlarge
from megatv.studio import limits
from megatv.studio.take import Take

BUSY = "the studio is busy with other downloads: try again in a moment"
BUSY_OF_ONE = "downloads to your address take all the room that they may: let one of them end"


class File:
    """Some bytes that were made for `network`.

    chunks   of which a video was made; a take of as many chunks is still the same
    """

    def __init__(self, data: bytes, network: str, chunks: int = 0) -> None:
        self.data, self.network, self.chunks = data, network, chunks


class FileResponse(Response):
    """An answer that sends a file in pieces, each when the one before is on its way."""

    def __init__(self, file: File, kind: str, name: str) -> None:
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        super().__init__(None, media_type=kind, headers={**headers, "content-length": str(len(file.data))})
        self.file = file

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it, as ASGI has it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for at in range(0, len(self.file.data), limits.PIECE_BYTES):
            piece = self.file.data[at : at + limits.PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


class Downloads:
    """Bounds what all files hold together: those that are being sent, and the videos that takes keep.

    takes   all takes there are
    """

    def __init__(self, takes: Callable[[], Iterable[Take]]) -> None:
        self._takes = takes
        self._files: WeakSet[File] = WeakSet()
        self._encoding = asyncio.Lock()
        self._waiting = 0

    def send(self, data: bytes, kind: str, name: str, network: str = "") -> Response:
        """An answer that sends `data`. Raises HTTPException 503 when there is no room for it."""
        self._make_room(len(data), network)
        return FileResponse(self._hold(File(data, network)), kind, name)

    async def send_video(self, take: Take, network: str = "") -> Response:
        """An answer that sends a take as mp4. Raises HTTPException with one sentence."""
        if not take.frames:
            raise HTTPException(409, "this take has no frames yet")
        if self._waiting >= limits.MAX_VIDEOS_WAITING:
            raise HTTPException(503, BUSY)
        self._waiting += 1
        try:
            async with self._encoding:
                if take.video is None or take.video.chunks != len(take.frames):
                    take.video = await self._encode(take, network)
                return FileResponse(take.video, "video/mp4", f"take-{take.number}.mp4")
        finally:
            self._waiting -= 1

    async def _encode(self, take: Take, network: str) -> File:
        take.video = None
        self._make_room(limits.MAX_VIDEO_BYTES, network)
        clips = list(take.frames)
        try:
            data = await run_in_threadpool(
                encode_clips, map(enlarge, clips), crf=18, most=limits.MAX_VIDEO_BYTES
            )
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        return self._hold(File(data, network, len(clips)))

    def _hold(self, file: File) -> File:
        self._files.add(file)
        return file

    def _make_room(self, size: int, network: str) -> None:
        """Room for so many bytes; kept videos make some. Raises HTTPException 503."""
        if self._lacks(size, network):
            for take in self._takes():
                take.video = None
        if reason := self._lacks(size, network):
            raise HTTPException(503, reason)

    def _lacks(self, size: int, network: str) -> str:
        """Why there is no room for so many bytes more; "" when there is."""
        files = list(self._files)
        if sum(len(file.data) for file in files) + size > limits.MAX_DOWNLOAD_BYTES:
            return BUSY
        own = sum(len(file.data) for file in files if file.network == network)
        return BUSY_OF_ONE if own + size > limits.MAX_DOWNLOAD_BYTES_OF_ONE else ""

"""Chunks become pictures while the next one is spoken and drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from megatv.model.codec import Codec, Decoder


class BackgroundDecoder:
    """A `Decoder` in a thread of its own, on a GPU in a stream of its own; frames come back in order.

    As a context manager it waits, at its end, for what has begun.
    """

    def __init__(self, codec: Codec) -> None:
        self._decoder = Decoder(codec)
        self._thread = ThreadPoolExecutor(1, "decode")
        self._pending: deque[tuple[int, Future[np.ndarray]]] = deque()
        self._side: torch.cuda.Stream | None = None

    def push(self, chunk: int, latents: Tensor) -> None:
        """Begin to decode the next raw latent of each video, [B, C, h, w]; `chunk` is its name."""
        drawn = torch.cuda.current_stream().record_event() if latents.is_cuda else None
        self._pending.append((chunk, self._thread.submit(self._decode, latents, drawn)))

    def frames(self, *, wait: bool) -> Iterator[tuple[int, np.ndarray]]:
        """(chunk, uint8 [B, 1 or 4, H, W, 3]) of those that are done; `wait`: of all that were pushed."""
        while self._pending and (wait or self._pending[0][1].done()):
            chunk, decoded = self._pending.popleft()
            yield chunk, decoded.result()

    def __enter__(self) -> BackgroundDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _decode(self, latents: Tensor, drawn: torch.cuda.Event | None) -> np.ndarray:
        if drawn is None:
            return self._decoder.push(latents).numpy()
        self._side = self._side or torch.cuda.Stream(latents.device)
        with torch.cuda.stream(self._side):
            self._side.wait_event(drawn)
            return self._decoder.push(latents).cpu().numpy()  # done when it returns: latents may be freed

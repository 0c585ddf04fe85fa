"""Whether a window of videos fits into memory, checked before it is allocated.

The length of a sequence and the size of a video are only numbers in a checkpoint's config, and cost whoever
wrote them nothing.
"""

from __future__ import annotations

import torch

from megatv.config import VideoConfig
from megatv.free_memory import require_memory
from megatv.sample.cache import KVCache

PIXEL_BYTES = 3 * (4 + 1)
"""Bytes of one RGB pixel while a window is decoded: float32 and uint8."""


def require_room(cache: KVCache, device: torch.device, video: VideoConfig, frames: int) -> None:
    """Refuse (ValueError) a cache, given on the meta device, that would not fit on `device`, or its videos.

    frames   of all videos together that are decoded at once, in the host's memory
    """
    keys = cache.keys.nbytes + cache.values.nbytes
    pixels = frames * video.width * video.height * PIXEL_BYTES
    host = torch.device("cpu")
    needs = {host: keys + pixels} if device.type == "cpu" else {device: keys, host: pixels}
    videos = (
        f"{len(cache.lengths)} sequences of {cache.slots:,} tokens and {frames:,} frames of "
        f"{video.width} x {video.height}"
    )
    for place, need in needs.items():
        require_memory(need, place, videos, "ask for fewer videos at a time or for shorter ones")

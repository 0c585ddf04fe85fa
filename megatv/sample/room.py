"""Whether a window of videos fits into memory, checked before it is allocated.

A model's weights are as large as their files, but the length of a sequence and the size of a video are only
numbers in a checkpoint's config, and cost whoever wrote them nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from megatv.config import VideoConfig
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
    for place, need in needs.items():
        if need > (free := available_bytes(place)):
            raise ValueError(
                f"{len(cache.lengths)} sequences of {cache.slots:,} tokens and {frames:,} frames of "
                f"{video.width} x {video.height} take {need / 2**30:,.1f} GiB of memory on {place}, and "
                f"{free / 2**30:,.1f} are free: ask for fewer videos at a time or for shorter ones"
            )


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device now; all of the host's, where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

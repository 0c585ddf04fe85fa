"""How much memory a device has left, asked before a stranger's numbers decide what is allocated.

A file's size is no bound: a file with holes takes its author nothing, and reading it fills memory.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch


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


def require_memory(need: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse (ValueError) to allocate `need` bytes on `device` when fewer are free.

    what, remedy   the beginning of the message, which says what takes the memory, and its end
    """
    if need > (free := available_bytes(device)):
        sizes = f"{need / 2**30:,.1f} GiB of memory on {device}, and {free / 2**30:,.1f} are free"
        raise ValueError(f"{what} take {sizes}: {remedy}")

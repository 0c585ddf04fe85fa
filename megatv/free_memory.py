"""How much memory a device has left, asked before a stranger's numbers decide what is allocated.

A file's size is no bound: a file with holes takes its author nothing, and reading it fills memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device now; all of the host's, where the system does not say.

    On a CPU, no more than the control groups of the process leave it: a container's or a Slurm job's limit.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    return min([_host_bytes(), *left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def left_in_groups(membership: Path, root: Path) -> Iterator[int]:
    """What every control group above the process leaves of its limit, in bytes; nothing where there is none.

    Cached file pages that the kernel can drop are free. Both versions of control groups are read (the Linux
    kernel's documentation: cgroup-v2.rst "Memory", cgroup-v1/memory.rst).
    """
    for line in _text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, limit, usage, cached = root, "memory.max", "memory.current", ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = ("total_inactive_file", "total_active_file")
        else:
            continue
        group = top / path.strip("/")
        for folder in [group, *group.parents]:
            allowed, used = _text(folder / limit).strip(), _text(folder / usage).strip()
            if allowed.isdecimal() and used.isdecimal():  # "max" is no limit
                stat = dict(pair.split(" ", 1) for pair in _text(folder / "memory.stat").splitlines())
                yield int(allowed) - int(used) + sum(int(stat.get(name, 0)) for name in cached)
            if folder == top:
                break


def _host_bytes() -> int:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(path: Path) -> str:
    """A file of the kernel's, or nothing where it is not."""
    try:
        return path.read_text()
    except OSError:
        return ""


def require_memory(need: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse (ValueError) to allocate `need` bytes on `device` when fewer are free.

    what, remedy   the beginning of the message, which says what takes the memory, and its end
    """
    if need > (free := available_bytes(device)):
        sizes = f"{need / 2**30:,.1f} GiB of memory on {device}, and {free / 2**30:,.1f} are free"
        raise ValueError(f"{what} take {sizes}: {remedy}")

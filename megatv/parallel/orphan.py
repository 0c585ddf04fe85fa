"""No rank outlives its launcher: whoever kills that, by -9 too, stops the run, and nothing stays behind.

The kernel tells a process of its parent's death only through the thread that started it, and of its
grandparent's not at all; a descriptor of a process (pidfd) becomes readable when that ends, however it does.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from pathlib import Path


def stop_without_launcher() -> None:
    """From now on: SIGTERM to this process when its launcher is gone; while training, save and leave.

    Under `torchrun` that is the parent, under `deepspeed` also the parent's parent, the command itself; its
    child would go on alone. Other parents (a shell, which may end before a run; Slurm's) are none.
    """
    pids = []
    if "TORCHELASTIC_RUN_ID" in os.environ or "CROSS_RANK" in os.environ:
        pids.append(os.getppid())
    if "CROSS_RANK" in os.environ:  # which only deepspeed.launcher.launch sets
        pids.append(_parent_of(os.getppid()))
    if pids:
        watched = [os.pidfd_open(pid) for pid in pids]
        threading.Thread(target=_wait, args=(watched,), name="megatv-orphan", daemon=True).start()


def _wait(watched: list[int]) -> None:
    select.select(watched, [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def _parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])

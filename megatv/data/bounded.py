"""Starts our programs that read a stranger's file in processes of their own (`*_child.py`).

A small file may unpack to gigabytes, keep a decoder busy for hours, or exploit a bug of the decoder. In such
a process that costs one sentence: it has bounds on its memory and CPU time, which it sets before it reads
anything, and all of its memory is freed at its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

TOO_LONG = "reading it takes too long"


def start(program: Path, *arguments: int, files: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """The started program, with pipes to its stdin and from its stdout. files: descriptors for it."""
    return subprocess.Popen(
        [sys.executable, "-P", program, *map(str, arguments)],  # -P: its folder hides no library
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=files,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"},  # threads take memory each
    )


def why_ended(exit_code: int) -> str:
    """Why a program ended that said nothing about it."""
    return TOO_LONG if exit_code == -signal.SIGXCPU else "the decoder crashed"

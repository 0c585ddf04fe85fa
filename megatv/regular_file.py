"""Opening a file that a stranger may have put there: no pipe or device, no link unless asked, bounded."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MAX_SMALL_BYTES = 1 << 24
"""Of a file that describes others, such as an index: thirty times what the largest models need."""


def open_regular(file: Path, *, links: bool = False) -> BufferedReader:
    """`file` open for reading, when it is a regular file. OSError; ValueError for a link, a pipe or a device.

    links  whether `file` may be a link, as in the cache of Hugging Face
    """
    # O_NONBLOCK: a pipe that nobody writes to does not hold the reader up
    follow = 0 if links else os.O_NOFOLLOW
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
    except OSError as error:
        if error.errno == errno.ELOOP and file.is_symlink():
            raise ValueError(
                f"{file}: is a link, and only what lies in its folder itself is read; copy the folder with "
                "cp -rL"
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file}: is not a regular file")
    return open(descriptor, "rb")


def read_small(file: Path, *, links: bool = False) -> bytes:
    """All of a file that is small by its nature. OSError; ValueError as `open_regular`, or when it is not."""
    with open_regular(file, links=links) as stream:
        text = stream.read(MAX_SMALL_BYTES + 1)
    if len(text) > MAX_SMALL_BYTES:
        raise ValueError(f"{file}: has more than {MAX_SMALL_BYTES} bytes, which no such file needs")
    return text

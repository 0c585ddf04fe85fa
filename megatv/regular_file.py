"""Opens and writes files in folders that a stranger may have filled: regular files only, of bounded size.

Reading a pipe can wait for ever, a device has no end, and a link leads out of the folder that was given.
Files are written as new ones, whole or not at all, and never through a link.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

MAX_SMALL_BYTES = 1 << 24
"""Most of a file that describes others, such as the index of a model's weights."""


def open_regular(path: str | Path, most: int | None = None, *, links: bool = False) -> io.BufferedReader:
    """A regular file of at most `most` bytes, open for reading.

    links  whether the path may be that of a link, as in the cache of Hugging Face
    Raises OSError, and ValueError that begins with the path for a link, what is no file, and too many bytes.
    """
    # O_NONBLOCK: a pipe that nobody writes to does not hold the reader up
    follow = 0 if links else os.O_NOFOLLOW
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
    except OSError as error:
        if error.errno == errno.ELOOP and follow and os.path.islink(path):
            raise ValueError(
                f"{path}: is a link, and only what lies in its folder itself is read; copy the folder with "
                "cp -rL"
            ) from None
        raise
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and (most is None or found.st_size <= most):
        return open(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    large = f"has {found.st_size} bytes, and at most {most} are read"
    raise ValueError(f"{path}: {large if stat.S_ISREG(found.st_mode) else 'is not a regular file'}")


def read_bytes(path: str | Path, most: int = MAX_SMALL_BYTES, *, links: bool = False) -> bytes:
    """All of a file. Raises as `open_regular` does, and ValueError when the file grows meanwhile."""
    with open_regular(path, most, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
    if len(data) > size:
        raise ValueError(f"{path}: grew while it was read; try again when it is whole")
    return data


def create_file(path: str | Path, *, private: bool = True) -> BinaryIO:
    """A new file for writing. Raises FileExistsError where anything is, a link too.

    private  only the owner may read it
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600 if private else 0o666), "wb")


def require_place(out: Path | None) -> None:
    """Refuse (ValueError) a file of `--out` that could not be written at the end, before any work is done."""
    if out is None:
        return
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written; name a file in a folder of yours")


def partial_folder(out: Path) -> Path:
    """A new empty folder beside `out`, to be filled and then renamed to it; parents are made. Raises OSError.

    Others may read it, as they may what any program writes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    partial.chmod(0o755)
    return partial


def write_file(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 atomically, by way of a new file beside `path`; a link there is replaced. Raises OSError.

    A file's name may be no Unicode: what cannot be encoded is written as JSON does, such as \\udcff.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with create_file(partial, private=private) as file:
            file.write(text.encode(errors="backslashreplace"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

"""Files of a shard directory, opened as what they must be and never larger than they may be.

A directory from a stranger may hold anything under these names: a pipe that never answers, a device without
an end, a text of terabytes. Hashes are xxh64: they find damage, not malice, since whoever changes a file can
write its hash too. What is read is therefore checked whether its hash fits or not.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from megatv.untrusted import parse_json

REMEDY = "copy the directory again or make the shards anew (tools/shards.py verify DIR checks them all)"
MAX_TEXT_BYTES = 1 << 20
"""Of dataset.json and latent_stats.json, which take 2 KB."""
MAX_LEVELS = 32
"""Objects and lists of a JSON text inside each other: later walks over them stay far below Python's limit."""


def open_regular(path: str | Path, most: int, *, links: bool = True) -> io.FileIO:
    """A regular file of at most `most` bytes, opened for reading; no pipe, device or folder.

    links  whether the name may be that of a symbolic link to one
    Raises ValueError with the file and the remedy.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_size <= most:
        return open(handle, "rb", buffering=0)
    os.close(handle)
    reason = f"has {found.st_size} bytes, and at most {most} are read"
    raise ValueError(f"{path}: {reason if stat.S_ISREG(found.st_mode) else 'is not a file'}; {REMEDY}")


def read_json(path: Path) -> Any:
    """Plain data of a small JSON file of a shard directory; ValueError with file and remedy."""
    with open_regular(path, MAX_TEXT_BYTES) as file:
        text = file.read()
    try:
        tree = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); {REMEDY}") from None
    if is_deeper(tree, MAX_LEVELS):
        raise ValueError(f"{path}: is damaged (nested too deeply); {REMEDY}")
    return tree


def is_deeper(tree: Any, levels: int) -> bool:
    """Whether plain data has more than `levels` levels of objects and lists."""
    if not isinstance(tree, (dict, list)):
        return False
    inner = tree.values() if isinstance(tree, dict) else tree
    return levels == 0 or any(is_deeper(value, levels - 1) for value in inner)


def hash_file(file: io.IOBase, digest: xxhash.xxh64) -> None:
    """Feed an open file's bytes to `digest`, a few MiB at a time."""
    while block := file.read(1 << 22):
        digest.update(block)


def file_digest(file: io.IOBase) -> str:
    """xxh64 of an open file's bytes, from where it stands on, in hexadecimal."""
    digest = xxhash.xxh64()
    hash_file(file, digest)
    return digest.hexdigest()


def create(path: Path) -> BinaryIO:
    """A new file for writing, the user's alone. Raises FileExistsError where anything is, a link too."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")

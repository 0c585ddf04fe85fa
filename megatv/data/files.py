"""Opens the files of a shard directory: regular files only, each with a bound on its size.

A directory from a stranger may hold anything under these names. Hashes are xxh64: they find damage, not
malice, since whoever changes a file can write its hash too. What is read is therefore checked whether its
hash fits or not.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import xxhash

from megatv.regular_file import open_regular
from megatv.untrusted import MAX_LEVELS, is_deeper, parse_json

REMEDY = "copy the directory again or make the shards anew (tools/shards.py verify DIR checks them all)"
MAX_TEXT_BYTES = 1 << 20
"""Most of dataset.json and of latent_stats.json, far above what they take."""


def open_file(path: str | Path, most: int, *, links: bool = True) -> io.BufferedReader:
    """A file of a shard directory, by `open_regular`; ValueError with file and remedy for any fault."""
    try:
        return open_regular(path, most, links=links)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from None


def read_json(path: Path) -> Any:
    """Plain data of a small JSON file of a shard directory; ValueError with file and remedy."""
    with open_file(path, MAX_TEXT_BYTES) as file:
        text = file.read(MAX_TEXT_BYTES)
    try:
        tree = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); {REMEDY}") from None
    if is_deeper(tree, MAX_LEVELS):
        raise ValueError(f"{path}: is damaged (nested too deeply); {REMEDY}")
    return tree


def hash_file(file: io.IOBase, digest: xxhash.xxh64) -> None:
    """Feed an open file's bytes to `digest`, a few MiB at a time."""
    while block := file.read(1 << 22):
        digest.update(block)


def file_digest(file: io.IOBase) -> str:
    """xxh64 of an open file's bytes, from where it stands on, in hexadecimal."""
    digest = xxhash.xxh64()
    hash_file(file, digest)
    return digest.hexdigest()

"""Reads one episode of CS:GO in a process of its own; `megatv.data.csgo_episode` starts it and asks.

    python csgo_episode_child.py DESCRIPTOR MAX_BYTES MAX_SECONDS

First answers with the number of frames, as uint32; then every line `KIND FRAME` on stdin with that frame's
array: KIND x is the picture as it is stored, uint8 [150, 280, 3]; y the action, float64 [51]. Before each
answer goes `+`; what cannot be read is `-` and the fault in FAULT_BYTES bytes.

HDF5 can take numbers from other files and make gigabytes of a few bytes. So an array is looked at before it
is read: it lies in this file, has exactly the layout's shape, and is compressed by gzip or lzf or not at all,
in chunks that become no larger than the array. At most one array is in memory at a time. Whatever HDF5 does
nevertheless, the process may open no second file.
"""

from __future__ import annotations

import math
import os
import re
import resource
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

SHAPES: dict[str, tuple[int, ...]] = {"x": (150, 280, 3), "y": (51,)}
TYPES: dict[str, np.dtype] = {"x": np.dtype(np.uint8), "y": np.dtype("<f8")}
MAX_FRAMES = 10_000
"""Ten times those of a recording."""
MAX_CHUNKS, SLACK_BYTES = 1024, 1024
"""Chunks of one array, and what compression may add to one."""
FAULT_BYTES = 512
_SHUFFLE, _GZIP, _LZF, _CHECKSUM = 2, 1, 32000, 3
_ORDER = {_SHUFFLE: 0, _GZIP: 1, _LZF: 1, _CHECKSUM: 2}
"""HDF5's filters that are run, by number, and the place of each."""
_KEY = re.compile(r"frame_(0|[1-9][0-9]{0,5})_([xy])")
_ERRORS = (
    *(OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError),
    *(ArithmeticError, MemoryError, zlib.error),
)
"""What h5py raises for damage."""


def main() -> None:
    """Answer until there are no more questions."""
    descriptor, max_bytes, max_seconds = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (max_seconds, max_seconds + 1))
    load_h5py()
    next_file = os.dup(descriptor)
    os.close(next_file)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_file + 1, next_file + 1))  # that one can be opened
    try:
        recording = Recording(f"/dev/fd/{descriptor}")
    except ValueError as error:
        return _answer(b"-", _fault_bytes(error))
    _answer(b"+", struct.pack("<I", recording.frames))
    for question in sys.stdin:
        kind, frame = question.split()
        try:
            array = recording.array(f"frame_{frame}_{kind}")
        except ValueError as error:
            _answer(b"-", _fault_bytes(error))
        else:
            _answer(b"+", np.ascontiguousarray(array, TYPES[kind]).tobytes())


def _answer(kind: bytes, content: bytes) -> None:
    sys.stdout.buffer.write(kind + content)
    sys.stdout.buffer.flush()


def _fault_bytes(error: ValueError) -> bytes:
    return str(error).encode(errors="replace")[:FAULT_BYTES].ljust(FAULT_BYTES)


class Recording:
    """An open HDF5 file. frames: how many it holds, numbered from 0 without gaps.

    Raises ValueError with the fault: when opened, for a file that is no HDF5, is cut short, or lacks a frame;
    when read, for an array that is not of the layout.
    """

    def __init__(self, path: str) -> None:
        self._h5py = load_h5py()
        with _damage("as a whole"):
            self._file = self._h5py.File(path, "r")
        self.frames = self._count()

    def array(self, key: str) -> np.ndarray:
        """The array of a key such as `frame_0_x`, after all that can be checked without reading it."""
        with _damage(key):
            link = self._file.get(key, getlink=True)
            stored: Any = self._file[key] if isinstance(link, self._h5py.HardLink) else None
            if not (fault := _fault(stored, key[-1], self._h5py)):
                return np.asarray(stored[()])
        raise ValueError(f"{key} {fault}")

    def _count(self) -> int:
        """Frames of the file; every one has its picture and its action."""
        with _damage("its list of frames"):
            found = {match.group(0) for match in map(_KEY.fullmatch, self._file) if match}
        if not found:
            raise ValueError("has no key frame_0_x, so it is not an episode of CS:GO")
        frames = 1 + max(int(key.split("_")[1]) for key in found)
        if frames > MAX_FRAMES:
            raise ValueError(f"says {frames} frames, and at most {MAX_FRAMES} are read")
        for frame in range(frames):
            for key in (f"frame_{frame}_x", f"frame_{frame}_y"):
                if key not in found:
                    raise ValueError(f"{key} is missing, though later keys of its {frames} frames are there")
        return frames


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """HDF5's own errors, of several kinds, as one sentence."""
    try:
        yield
    except _ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"does not read, {what} ({reason})") from error


def _fault(stored: Any, kind: str, h5py: Any) -> str:
    """What forbids to read an array, or ""; stored: h5py's object, None for what is only a link elsewhere."""
    if stored is None:
        return "is a link to another place"
    if not isinstance(stored, h5py.Dataset):
        return "is not an array"
    made = stored.id.get_create_plist()
    # before its shape, which HDF5 looks up in the other files
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        return "takes its numbers from other files"
    dtype, shape = stored.dtype, stored.shape
    if kind == "x" and (dtype != np.uint8 or shape != SHAPES[kind]):
        return f"is {dtype} {_plain(shape)} instead of uint8 {_plain(SHAPES[kind])}"
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        return f"holds {dtype} instead of numbers"
    if shape != SHAPES[kind]:
        return f"has the shape {_plain(shape)} instead of {_plain(SHAPES[kind])}"
    if stored.chunks is None:
        return "" if stored.id.get_storage_size() >= stored.nbytes else "was never filled"
    return _fault_of_chunks(stored, made)


def _fault_of_chunks(stored: Any, made: Any) -> str:
    """As `_fault`, of an array in chunks: none may become more bytes than it claims, nor than the array."""
    filters = [made.get_filter(index) for index in range(made.get_nfilters())]
    codes = [code for code, *_ in filters]
    places = [_ORDER.get(code, -1) for code in codes]
    if -1 in places or places != sorted(set(places)):
        return "is stored by other filters than gzip, lzf, shuffle and fletcher32"
    size = math.prod(stored.chunks) * stored.dtype.itemsize
    whole = math.prod(-(-side // chunk) for side, chunk in zip(stored.shape, stored.chunks, strict=True))
    if (
        any(chunk > side for side, chunk in zip(stored.shape, stored.chunks, strict=True))
        or whole > MAX_CHUNKS
    ):
        return f"has chunks of {_plain(stored.chunks)}, which are too large or too small"
    if any(code == _LZF and len(values) > 2 and values[2] > size for code, _, values, _ in filters):
        return "claims chunks larger than itself"
    count = stored.id.get_num_chunks()
    if count != whole:
        return "was not filled"
    for index in range(count):
        chunk = stored.id.get_chunk_info(index)
        if chunk.size > size + SLACK_BYTES:
            return "has a compressed chunk larger than itself"
        if _GZIP in codes and not chunk.filter_mask >> codes.index(_GZIP) & 1:
            _, data = stored.id.read_direct_chunk(chunk.chunk_offset)
            inflate = zlib.decompressobj()
            if len(inflate.decompress(data, size + 1)) > size:
                return "has a chunk that becomes larger than itself"
    return ""


def _plain(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


def load_h5py() -> Any:
    """The h5py module, which loads no decoder from elsewhere because a file asks for it."""
    import h5py

    while h5py.h5pl.size():
        h5py.h5pl.remove(0)
    return h5py


if __name__ == "__main__":
    main()

"""One recorded episode of CS:GO as an HDF5 file, read and checked. The only module that knows h5py.

The layout is that of Pearce and Zhu's recordings (Hugging Face `TeaPearce/CounterStrike_Deathmatch`): 1000
frames at 16 Hz in a file, and for every frame i
    frame_{i}_x           uint8 [150, 280, 3]: the picture, blue first (their `screen_input.py` grabs BGR)
    frame_{i}_y           numbers [51]: the action; see `megatv.data.csgo_actions`
    frame_{i}_xaux, frame_{i}_helperarr   earlier actions, health, kills; not used here

An episode may come from a stranger, and HDF5 can take numbers from other files and make gigabytes of a few
bytes. So an array is looked at before it is read: it lies in this file, has exactly the layout's shape, and
is compressed by gzip or lzf or not at all, in chunks that become no larger than the array. At most one array
is in memory at a time.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatv.data.csgo_actions import ACTION_VALUES, GameAction, decode_action

HEIGHT, WIDTH = 150, 280
MAX_FRAMES = 10_000
"""Ten times those of a recording."""
MAX_CHUNKS, SLACK_BYTES = 1024, 1024
"""Chunks of one array, and what compression may add to one."""
_SHAPES = {"x": (HEIGHT, WIDTH, 3), "y": (ACTION_VALUES,)}
_SHUFFLE, _GZIP, _LZF, _CHECKSUM = 2, 1, 32000, 3
_ORDER = {_SHUFFLE: 0, _GZIP: 1, _LZF: 1, _CHECKSUM: 2}
"""HDF5's filters that are run, by number, and the place of each."""
_KEY = re.compile(r"frame_(0|[1-9][0-9]{0,5})_([xy])")
_ERRORS = (
    *(OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError),
    *(ArithmeticError, MemoryError, zlib.error),
)
"""What h5py raises for damage."""
_REMEDY = "fetch the file again or leave it out"


class Episode:
    """An open episode; use it in a `with` block. frames: how many it holds, numbered from 0 without gaps.

    Raises ValueError with the file, the frame's key and the remedy: when opened, for a file that is no HDF5,
    is cut short, or lacks a frame; when read, for a picture or an action that is not of the layout.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: Any = None
        if not self.path.is_file():
            raise ValueError(f"{self.path}: is not a file; name an episode (.hdf5) or a folder of them")
        self._h5py = _load_h5py()
        with self._damage("as a whole"):
            self._file = self._h5py.File(self.path, "r")
        try:
            self.frames = self._count()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Episode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def picture(self, frame: int) -> np.ndarray:
        """uint8 [150, 280, 3]: the picture of one frame, red first."""
        return np.ascontiguousarray(self._read(f"frame_{frame}_x")[..., ::-1])

    def action(self, frame: int) -> GameAction:
        """The action stored with one frame."""
        key = f"frame_{frame}_y"
        stored = self._read(key)
        try:
            return decode_action(stored)
        except ValueError as error:
            raise ValueError(f"{self.path}: {key} {error}; {_REMEDY}") from None

    def actions(self) -> list[GameAction]:
        """The actions of all frames."""
        return [self.action(frame) for frame in range(self.frames)]

    def _count(self) -> int:
        """Frames of the file; every one has its picture and its action."""
        with self._damage("its list of frames"):
            found = {match.group(0) for match in map(_KEY.fullmatch, self._file) if match}
        if not found:
            raise ValueError(
                f"{self.path}: has no key frame_0_x, so it is not an episode of CS:GO; {_REMEDY}"
            )
        frames = 1 + max(int(key.split("_")[1]) for key in found)
        if frames > MAX_FRAMES:
            raise ValueError(
                f"{self.path}: says {frames} frames, and at most {MAX_FRAMES} are read; {_REMEDY}"
            )
        for frame in range(frames):
            for key in (f"frame_{frame}_x", f"frame_{frame}_y"):
                if key not in found:
                    raise ValueError(
                        f"{self.path}: {key} is missing, though later keys of its {frames} frames are there; "
                        f"{_REMEDY}"
                    )
        return frames

    def _read(self, key: str) -> np.ndarray:
        """The array of a key, after all that can be checked without reading it."""
        with self._damage(key):
            link = self._file.get(key, getlink=True)
            stored: Any = self._file[key] if isinstance(link, self._h5py.HardLink) else None
            if not (fault := _fault(stored, key[-1], self._h5py)):
                return np.asarray(stored[()])
        raise ValueError(f"{self.path}: {key} {fault}; {_REMEDY}")

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """HDF5's own errors, of several kinds, as one sentence."""
        try:
            yield
        except _ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: does not read, {what} ({reason}); {_REMEDY}") from error


def _fault(stored: Any, kind: str, h5py: Any) -> str:
    """What forbids to read an array, or ""; stored: h5py's object, None for what is only a link elsewhere."""
    if stored is None:
        return "is a link to another place"
    if not isinstance(stored, h5py.Dataset):
        return "is not an array"
    made, dtype, shape = stored.id.get_create_plist(), stored.dtype, stored.shape
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        return "takes its numbers from other files"
    if kind == "x" and (dtype != np.uint8 or shape != _SHAPES[kind]):
        return f"is {dtype} {_plain(shape)} instead of uint8 {_plain(_SHAPES[kind])}"
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        return f"holds {dtype} instead of numbers"
    if shape != _SHAPES[kind]:
        return f"has the shape {_plain(shape)} instead of {_plain(_SHAPES[kind])}"
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


def _load_h5py() -> Any:
    """The h5py module; ValueError with the line that installs it. Only who reads episodes needs it."""
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "h5py is not installed, which reads CS:GO's episodes: `pip install --no-deps --require-hashes "
            "--only-binary :all: -r launch/lock/data.txt`"
        ) from None
    while h5py.h5pl.size():  # no decoder from elsewhere is loaded because a file asks for it
        h5py.h5pl.remove(0)
    return h5py

"""One recorded episode of CS:GO as an HDF5 file, read and checked. The only module that knows h5py.

The layout is that of Pearce and Zhu's recordings (Hugging Face `TeaPearce/CounterStrike_Deathmatch`): 1000
frames at 16 Hz in a file, and for every frame i
    frame_{i}_x           uint8 [150, 280, 3]: the picture, blue first (their `screen_input.py` grabs BGR)
    frame_{i}_y           numbers [51]: the action; see `megatv.data.csgo_actions`
    frame_{i}_xaux, frame_{i}_helperarr   earlier actions, health, kills; not used here
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatv.data.csgo_actions import GameAction, decode_action

HEIGHT, WIDTH = 150, 280
_KEY = re.compile(r"frame_(0|[1-9][0-9]*)_([xy])")
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
        with self._damage("as a whole"):
            self._file = _h5py().File(self.path, "r")
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
        key = f"frame_{frame}_x"
        stored = self._read(key)
        if stored.dtype != np.uint8 or stored.shape != (HEIGHT, WIDTH, 3):
            raise ValueError(
                f"{self.path}: {key} is {stored.dtype} {list(stored.shape)} instead of uint8 "
                f"[{HEIGHT}, {WIDTH}, 3]; {_REMEDY}"
            )
        return np.ascontiguousarray(stored[..., ::-1])

    def action(self, frame: int) -> GameAction:
        """The action stored with one frame."""
        key = f"frame_{frame}_y"
        stored = self._read(key)
        if stored.dtype.kind not in "fiub":
            raise ValueError(f"{self.path}: {key} holds {stored.dtype} instead of numbers; {_REMEDY}")
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
        for frame in range(frames):
            for key in (f"frame_{frame}_x", f"frame_{frame}_y"):
                if key not in found:
                    raise ValueError(
                        f"{self.path}: {key} is missing, though later keys of its {frames} frames are there; "
                        f"{_REMEDY}"
                    )
        return frames

    def _read(self, key: str) -> np.ndarray:
        with self._damage(key):
            return np.asarray(self._file[key][()])

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """HDF5's own errors, of several kinds, as one sentence."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path}: does not read, {what} ({reason}); {_REMEDY}") from error


def _h5py() -> Any:
    """The h5py module; ValueError with the line that installs it. Only who reads episodes needs it."""
    try:
        import h5py
    except ImportError:
        raise ValueError("h5py is not installed, which reads CS:GO's episodes: `pip install h5py`") from None
    return h5py

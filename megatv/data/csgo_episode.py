"""One recorded episode of CS:GO as an HDF5 file, read and checked.

The layout is that of Pearce and Zhu's recordings (Hugging Face `TeaPearce/CounterStrike_Deathmatch`): 1000
frames at 16 Hz in a file, and for every frame i
    frame_{i}_x           uint8 [150, 280, 3]: the picture, blue first (their `screen_input.py` grabs BGR)
    frame_{i}_y           numbers [51]: the action; see `megatv.data.csgo_actions`
    frame_{i}_xaux, frame_{i}_helperarr   earlier actions, health, kills; not used here

An episode may come from a stranger, and damage can make HDF5 read other files or overflow its stack. So a
file is read by a process of its own (`csgo_episode_child`, the only module that knows h5py), one for as long
as the episode is open; see `megatv.data.bounded`.
"""

from __future__ import annotations

import importlib.util
import os
import select
import struct
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from megatv.data import bounded
from megatv.data.csgo_actions import GameAction, decode_action
from megatv.data.csgo_episode_child import FAULT_BYTES, MAX_FRAMES, SHAPES, TYPES
from megatv.regular_file import open_regular

HEIGHT, WIDTH, _ = SHAPES["x"]
MAX_READER_BYTES = 1 << 30
"""Address space of the process that reads a file."""
MAX_READER_SECONDS = 300
"""CPU time of that process: for all frames of an episode."""
MAX_ANSWER_SECONDS = 30.0
"""How long one frame may take, by the clock."""

CHILD = Path(__file__).with_name("csgo_episode_child.py")
_REMEDY = "fetch the file again or leave it out"


class Episode:
    """An open episode; use it in a `with` block. frames: how many it holds, numbered from 0 without gaps.

    Raises ValueError with the file, the frame's key and the remedy: when opened, for a file that is no HDF5,
    is cut short, or lacks a frame; when read, for a picture or an action that is not of the layout.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: is not a file; name an episode (.hdf5) or a folder of them")
        if importlib.util.find_spec("h5py") is None:
            raise ValueError(
                "h5py is not installed, which reads CS:GO's episodes: `pip install --no-deps "
                "--require-hashes --only-binary :all: -r launch/lock/data.txt`"
            )
        try:
            with open_regular(self.path, links=True) as file:
                descriptor = file.fileno()
                bounds = (descriptor, MAX_READER_BYTES, MAX_READER_SECONDS)
                self._reader = bounded.start(CHILD, *bounds, files=(descriptor,))
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        try:
            (self.frames,) = struct.unpack("<I", self._answer(struct.calcsize("<I")))
            if not 0 < self.frames <= MAX_FRAMES:
                raise self._damage(f"says {self.frames} frames")
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Episode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def picture(self, frame: int) -> np.ndarray:
        """uint8 [150, 280, 3]: the picture of one frame, red first."""
        return np.ascontiguousarray(self._array("x", frame)[..., ::-1])

    def action(self, frame: int) -> GameAction:
        """The action stored with one frame."""
        stored = self._array("y", frame)
        try:
            return decode_action(stored)
        except ValueError as error:
            raise self._damage(f"frame_{frame}_y {error}") from None

    def actions(self) -> list[GameAction]:
        """The actions of all frames."""
        return [self.action(frame) for frame in range(self.frames)]

    def _array(self, kind: str, frame: int) -> np.ndarray:
        """The array of `frame_{frame}_{kind}`."""
        assert self._reader.stdin
        try:
            os.write(self._reader.stdin.fileno(), f"{kind} {frame}\n".encode())
        except BrokenPipeError:
            raise self._gone() from None
        shape, dtype = SHAPES[kind], TYPES[kind]
        return np.frombuffer(self._answer(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)

    def _answer(self, size: int) -> bytes:
        """The `size` bytes of the reader's next answer; ValueError with its fault."""
        until = time.monotonic() + MAX_ANSWER_SECONDS
        if self._take(1, until) == b"+":
            return self._take(size, until)
        fault = self._take(FAULT_BYTES, until).decode(errors="replace")
        raise self._damage(" ".join(fault.split()))

    def _take(self, size: int, until: float) -> bytes:
        """So many bytes, which arrive before `until` of the monotonic clock."""
        assert self._reader.stdout
        ready, data = select.poll(), bytearray()
        ready.register(self._reader.stdout, select.POLLIN)
        while len(data) < size:
            if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
                self._reader.kill()
                raise self._damage(f"does not read ({bounded.TOO_LONG})")
            block = os.read(self._reader.stdout.fileno(), size - len(data))
            if not block:
                raise self._gone()
            data += block
        return bytes(data)

    def _gone(self) -> ValueError:
        return self._damage(f"does not read ({bounded.why_ended(self._reader.wait(MAX_ANSWER_SECONDS))})")

    def _damage(self, fault: str) -> ValueError:
        return ValueError(f"{self.path}: {fault}; {_REMEDY}")

    def _close(self) -> None:
        self._reader.kill()
        with self._reader:  # closes its pipes and waits for its end
            pass

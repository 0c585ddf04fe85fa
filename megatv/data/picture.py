"""Decodes pictures, which may come from strangers; no other module opens them.

A picture is decoded in a process of its own (`picture_child`), see `megatv.data.bounded` for why. Only
formats that people use for pictures are read: others, such as EPS, would start further programs.
"""

from __future__ import annotations

import struct
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import features

from megatv.data import bounded
from megatv.regular_file import open_regular

FORMATS = "PNG, JPEG, WebP or AVIF" if features.check("avif") else "PNG, JPEG or WebP"

MAX_FILE_BYTES = 64 << 20
"""Most bytes of one picture as a file."""
MAX_PIXELS = 16_000_000
"""Most pixels of one picture, width times height."""
MAX_DECODER_BYTES = 1 << 30
"""Address space of the process that decodes it; a picture of MAX_PIXELS takes about half of it at most."""
MAX_DECODER_SECONDS = 10
"""CPU time of that process. On a busy machine it may take three times as long by the clock."""

CHILD = Path(__file__).with_name("picture_child.py")
_decoding = threading.Lock()
"""Held while a picture is decoded: one at a time."""


class Picture(NamedTuple):
    """pixels: uint8 [height, width, 3], scaled; size: (width, height) of the upright picture before."""

    pixels: np.ndarray
    size: tuple[int, int]


def decode_picture(source: bytes | Path, width: int, height: int) -> Picture:
    """A picture scaled without letterboxing, as training videos are; what is transparent lies over black.

    Raises ValueError with one sentence when it cannot be read, or is too large; OSError when a path cannot.
    """
    data = source if isinstance(source, bytes) else _read(source)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"this file is larger than {MAX_FILE_BYTES >> 20} MiB: give a smaller picture")
    with _decoding:
        reply = _decode(data, width, height)
    head = struct.calcsize("<2I")
    pixels = np.frombuffer(reply, np.uint8, offset=head).reshape(height, width, 3).copy()
    return Picture(pixels, struct.unpack_from("<2I", reply))


def _read(path: Path) -> bytes:
    with open_regular(path, links=True) as file:
        return file.read(MAX_FILE_BYTES + 1)


def _decode(data: bytes, width: int, height: int) -> bytes:
    """The child's reply. ValueError with what it says, or with how it ended."""
    bounds = (width, height, MAX_PIXELS, MAX_DECODER_BYTES, MAX_DECODER_SECONDS)
    with bounded.start(CHILD, *bounds) as decoder:
        try:
            reply, _ = decoder.communicate(data, timeout=3 * MAX_DECODER_SECONDS)
        except subprocess.TimeoutExpired:
            decoder.kill()
            reason = bounded.TOO_LONG
        else:
            if decoder.returncode == 0:
                return reply
            said = reply.decode(errors="replace").strip() if decoder.returncode == 1 else ""
            reason = said or bounded.why_ended(decoder.returncode)
    raise ValueError(
        f"this file cannot be read as a picture ({reason}): give a {FORMATS} of at most "
        f"{MAX_PIXELS // 1_000_000} million pixels"
    )

"""What happens while a video is made, in order of time.

Where a stream overlaps its work, the pictures of a chunk come among the words of the next, or after them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatv.sample.request import ChunkWords, Result


@dataclass(frozen=True)
class TextToken:
    """The model said `text`, a piece of the words before `chunk`; a think2v model says its plan before 0."""

    chunk: int
    text: str


@dataclass(frozen=True)
class ChunkStarted:
    """The words of `chunk` are settled; it is drawn next."""

    chunk: int
    start_seconds: float
    words: ChunkWords


@dataclass(frozen=True)
class FramesDecoded:
    """The pictures of `chunk`: uint8 [n, H, W, 3], n = 1 where it opens a group of the codec's, else 4."""

    chunk: int
    start_seconds: float
    frames: np.ndarray


@dataclass(frozen=True)
class Finished:
    """The whole video, as `Sampler.generate` gives it. The last event."""

    result: Result


Event = TextToken | ChunkStarted | FramesDecoded | Finished

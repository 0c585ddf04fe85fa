"""Randomness of one training example, keyed instead of carried.

Every draw is a function of (seed, epoch, sample id, purpose, index), through numpy's counter-based Philox
generator. So noise survives any restart, any packing and any change of the process grid, and no generator
state has to be saved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

TEXT, CHUNK, CROP = 0, 1, 2
"""Purposes; with the index they fill the upper half of Philox's counter, so streams never overlap."""


@dataclass(frozen=True)
class ChunkDraw:
    """What chance decides about one chunk.

    t        flow-matching time in (0, 1), 0 is noise (TV2TV section 2.2: logit-normal)
    flip     uniform in [0, 1): the clean copy is replaced by the noisy one where it is below p_clean-vid-flip
    epsilon  float32 [C, h, w], standard normal
    """

    t: np.float32
    flip: float
    epsilon: np.ndarray


@dataclass(frozen=True)
class Draws:
    """All randomness of the sample `id` in one epoch of the run with `seed`."""

    seed: int
    epoch: int
    id: str

    def _stream(self, purpose: int, index: int) -> np.random.Generator:
        name = f"{self.seed}/{self.epoch}/{self.id}".encode()
        key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), "<u8")
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, index, purpose]))

    def text(self, segments: int) -> tuple[float, np.ndarray]:
        """Uniform draws in [0, 1) for text dropout: one for the whole sample, and float64 [segments]."""
        draws = self._stream(TEXT, 0).random(1 + segments)
        return float(draws[0]), draws[1:]

    def place(self, count: int) -> int:
        """Which of `count` equally likely places the crop of a longer clip has, from 0."""
        return int(self._stream(CROP, 0).integers(count))

    def chunk(self, index: int, shape: tuple[int, ...], *, mean: float, std: float) -> ChunkDraw:
        """Draws for latent `index` with epsilon of `shape`; t = sigmoid(n), n ~ N(mean, std^2)."""
        stream = self._stream(CHUNK, index)
        t = 1 / (1 + np.exp(-(mean + std * stream.standard_normal())))
        return ChunkDraw(np.float32(t), stream.random(), stream.standard_normal(shape, dtype=np.float32))

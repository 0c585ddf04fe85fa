"""The nouns of megatv, and the legend of tensor shapes used everywhere.

Shape legend
    N   latent frames (chunks) of one example          D  model width
    C   latent channels (16)                           H  query heads, K key/value heads
    h,w latent height and width (24, 40 at 320x192)    E  head dimension
    P   tokens of one chunk, (h/2)*(w/2) (240)         T  text rows of a packed row (capacity)
    M   chunks of a packed row (capacity)              S  rows of a packed row: T + 2*M*P

A packed row is ordered `[text | clean | noisy]`: T text rows, then M*P clean video rows, then M*P noisy
video rows; documents follow each other inside every part. Both towers then work on contiguous rows.
Flow-matching time runs from 0 (noise) to 1 (clean data), as in TV2TV eq. 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from megatv_kernels import AttentionRecord
from torch import Tensor

IGNORE = -100
"""Text target of rows without a loss."""


@dataclass(frozen=True)
class Caption:
    """One text segment. It conditions every chunk that starts at or after `start_seconds`."""

    start_seconds: float
    text: str


@dataclass(frozen=True)
class Example:
    """One clip as the shards hold it: latents and the words that belong to them.

    latents          float32 [N, C, h, w], normalised with the shard's latent statistics
    captions         in order of time; several may share a time
    meta_caption     describes the whole clip; opens the sequence
    detailed_caption one long prompt, used by `think2v: detailed_caption`
    valid_latents    chunks that hold real frames; the rest repeats the last frame and bears no loss
    ends_clip        the last valid chunk is the true end of the source clip, so EOS may follow it
    """

    id: str
    latents: np.ndarray
    captions: tuple[Caption, ...]
    meta_caption: str
    detailed_caption: str
    valid_latents: int
    ends_clip: bool


@dataclass(frozen=True)
class Sequence:
    """One example as the model sees it (TV2TV section 2.1), before packing.

    Text rows (T_i of them, BOS, BOF, EOF and EOS included):
        text_ids, text_targets   int64 [T_i]; target IGNORE where there is no loss
        text_positions           int32 [T_i], RoPE positions
        text_sees_chunks         int32 [T_i]: token j sees the first n clean chunks
    Chunks (N_i of them):
        chunk_sees_text          int32 [N_i]: chunk i sees the first n text tokens (its BOF included)
        clean_positions          int32 [N_i, P]: RoPE positions of the clean copy's tokens
        noisy_positions          int32 [N_i, P]: of the noisy copy's (the same ones when `noisy_pos: shared`)
        clean, noisy, velocity   float32 [N_i, C, h, w]: clean input (noisy where flipped), x_t, x - eps
        clean_t, noisy_t         float32 [N_i]: the time that the U-Net is told for each copy
        chunk_loss               bool [N_i]: the flow loss counts here
    Token j sees text tokens 0..j; chunk i sees clean chunks 0..i-1 and its own copy, both ways.
    """

    id: str
    text_ids: np.ndarray
    text_targets: np.ndarray
    text_positions: np.ndarray
    text_sees_chunks: np.ndarray
    chunk_sees_text: np.ndarray
    clean_positions: np.ndarray
    noisy_positions: np.ndarray
    clean: np.ndarray
    noisy: np.ndarray
    velocity: np.ndarray
    clean_t: np.ndarray
    noisy_t: np.ndarray
    chunk_loss: np.ndarray


@dataclass
class Batch:
    """One packed row (one micro-batch of one rank), ready for the model. Shapes are fixed by the config.

    text_ids, text_targets   int64 [T]          positions   int32 [S], RoPE positions in packed order
    clean, noisy, velocity   float32 [M, C, h, w]
    clean_t, noisy_t         float32 [M]        chunk_loss  bool [M]
    record                   who sees whom; see `megatv_kernels.AttentionRecord`
    ids                      the samples in this row, for messages
    """

    text_ids: Tensor
    text_targets: Tensor
    positions: Tensor
    clean: Tensor
    noisy: Tensor
    velocity: Tensor
    clean_t: Tensor
    noisy_t: Tensor
    chunk_loss: Tensor
    record: AttentionRecord
    ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if name != "ids":
                pinned = isinstance(value, Tensor) and value.is_pinned()
                moved[name] = value.to(device, non_blocking=True) if pinned else value.to(device)
        return Batch(**moved)

    def counts(self) -> Tensor:
        """float64 [2]: text targets and latent values that bear a loss."""
        values_per_chunk = self.velocity[0].numel()
        return torch.stack(
            [(self.text_targets != IGNORE).sum(), self.chunk_loss.sum() * values_per_chunk]
        ).to(torch.float64)


@dataclass
class LossSum:
    """Loss sums and counts of one micro-batch; only the engine divides (global sum over global count).

    text_sum   scalar: summed cross-entropy in nats          text_count   targets that bore it
    video_sum  scalar: summed squared error of the velocity  video_count  latent values that bore it
    """

    text_sum: Tensor
    video_sum: Tensor
    text_count: Tensor
    video_count: Tensor

    @staticmethod
    def add(parts: Iterable[LossSum]) -> LossSum:
        """Sum of sums, sum of counts."""
        items = list(parts)
        return LossSum(*(torch.stack([getattr(p, f.name) for p in items]).sum(0) for f in fields(LossSum)))

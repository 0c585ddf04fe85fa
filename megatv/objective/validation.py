"""Validation: the training loss on held-out rows, by modality and, for video, by timestep bin."""

from __future__ import annotations

import torch

from megatv.model.mot import Output
from megatv.objective.pretrain import chunk_errors
from megatv.types import Batch, LossSum

BINS = 8
"""Bins of equal width of the noisy copies' time, 0 (noise) to 1 (clean)."""


class ValidationSums:
    """Sums and counts of everything validated so far, in one table that ranks can add up.

    table  float64 [2 + BINS, 2]: (sum, count) of text, of video, and of video by timestep bin
    """

    def __init__(self, device: torch.device) -> None:
        self.table = torch.zeros(2 + BINS, 2, dtype=torch.float64, device=device)

    def add(self, output: Output, batch: Batch, loss: LossSum) -> None:
        """Count one row."""
        self.table[0] += torch.stack([loss.text_sum.double(), loss.text_count])
        self.table[1] += torch.stack([loss.video_sum.double(), loss.video_count])
        bins = (batch.noisy_t * BINS).long().clamp(max=BINS - 1)
        values = batch.chunk_loss * float(batch.velocity[0].numel())
        errors = chunk_errors(output, batch).where(batch.chunk_loss, 0.0)
        self.table[2:].index_add_(0, bins, torch.stack([errors, values], -1).double())

    def means(self) -> dict[str, float | None]:
        """`text_loss`, `video_loss` and `video_loss_t0` .. `video_loss_t7`; None where nothing counted."""
        names = ["text_loss", "video_loss", *(f"video_loss_t{i}" for i in range(BINS))]
        return {n: s / c if c else None for n, (s, c) in zip(names, self.table.tolist(), strict=True)}

"""The pre-training objective: next token and next frame (TV2TV eq. 14-16).

Losses are sums with counts. Only the engine adds them up over micro-batches and ranks and divides each by the
global count of its own modality, so that the objective does not depend on the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatv.config import ObjectiveConfig
from megatv.model.mot import Output
from megatv.parallel.layers import Layers
from megatv.types import Batch, LossSum


def chunk_errors(output: Output, batch: Batch) -> Tensor:
    """[M]: squared error of each chunk's velocity, summed over its C h w values, at least fp32 (eq. 15)."""
    velocity = output.velocity.to(torch.promote_types(output.velocity.dtype, torch.float32))
    return (velocity - batch.velocity).square().flatten(1).sum(1)


def pretrain_loss(output: Output, batch: Batch, layers: Layers) -> LossSum:
    """Sums over one packed row: cross-entropy of text rows with a target, error of chunks with a loss."""
    text_count, video_count = batch.counts()
    return LossSum(
        text_sum=layers.vocab_cross_entropy(output.text_logits, batch.text_targets).sum(),
        video_sum=chunk_errors(output, batch).where(batch.chunk_loss, 0.0).sum(),
        text_count=text_count,
        video_count=video_count,
    )


def weighted(loss: LossSum, counts: Tensor, objective: ObjectiveConfig) -> Tensor:
    """The scalar to differentiate (eq. 16): weighted sums over `counts`, float64 [2] (text, video), global.

    Summed over all micro-batches and ranks it is the loss of the whole step.
    """
    text, video = counts.clamp(min=1).to(loss.text_sum.dtype)
    return objective.text_weight * loss.text_sum / text + objective.video_weight * loss.video_sum / video

"""Rotary position embedding: Llama's half-split layout with the Llama-3 scaling rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatv.config import ModelConfig


def inverse_frequencies(model: ModelConfig, device: torch.device | None = None) -> Tensor:
    """float64 [E/2]: radians per position of each rotated pair, computed on `device`.

    With `rope_scaling`, waves longer than original_context / low_freq_factor are slowed by `factor`, those
    shorter than original_context / high_freq_factor are kept, and the ones between are blended linearly in
    the number of turns (llama-models `models/llama3/model.py`, apply_scaling; factor 8 for Llama 3.1, 32
    for 3.2).
    """
    exponent = torch.arange(0, model.head_dim, 2, dtype=torch.float64, device=device) / model.head_dim
    frequencies = model.rope_theta**-exponent
    rule = model.rope_scaling
    if rule is None:
        return frequencies
    turns = rule.original_context * frequencies / (2 * math.pi)  # full waves within the original context
    kept = (turns - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rule.factor)


def rope_table(positions: Tensor, model: ModelConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rotation at integer positions [...], as `megatv_kernels.rotate` wants it: `dtype` [2, ..., E].

    Row 0 holds (cos, cos), row 1 (-sin, sin), over the two halves of a head. Angles are taken in fp64, since
    fp32 is off by up to 5e-4 rad at position 9,000; and from scratch, since a buffer would be cast to bf16
    along with the weights.
    """
    # made on the device: a copy from the host could not be captured in a CUDA graph
    angles = positions[..., None].double() * inverse_frequencies(model, positions.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(dtype)

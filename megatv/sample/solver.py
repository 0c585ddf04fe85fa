"""Drawing chunks and tokens: noise, the Euler solver, guidance, text at a temperature.

All randomness is a function of (seed of the request, index of the chunk, purpose), never of the batch that
the request happens to share.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

PURPOSES = ("noise", "text")


def generator(seed: int, chunk: int, purpose: Literal["noise", "text"]) -> np.random.Generator:
    """The random stream of one chunk of one request (Philox, counter-based)."""
    key = np.array([seed, len(PURPOSES) * chunk + PURPOSES.index(purpose)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 N(0, I), where every chunk starts (TV2TV section 2.3, step 2)."""
    return generator(seed, chunk, "noise").standard_normal(shape, np.float32)


def euler(velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
    """Integrate dx/dt = velocity(x, t) from t = 0 (noise) to t = 1 (data) in `steps` equal Euler steps."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    for t, following in pairwise(times):
        x = x + (following - t) * velocity(x, t)
    return x


def guide(velocity: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance v = v_u + scale (v_c - v_u) (TV2TV footnote 5).

    velocity [2B, ...]: the B conditional rows, then their B text-free twins. Returns [B, ...].
    """
    conditional, unconditional = velocity.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def pick_tokens(logits: Tensor, temperature: float, uniform: list[float]) -> list[int]:
    """One token a row: softmax(logits / temperature) by inverse CDF, or the most likely one at 0.

    logits [B, V]; uniform: one number in [0, 1) a row.
    """
    if temperature == 0:
        return logits.argmax(-1).tolist()
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    threshold = torch.tensor(uniform, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
    return (cumulative <= threshold[:, None]).sum(-1).tolist()

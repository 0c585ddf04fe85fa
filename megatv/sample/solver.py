"""Drawing chunks and tokens: noise, solvers of the flow, guidance, text at a temperature.

A solver takes x from noise at t = 0 to data at t = 1 along dx/dt = velocity(x, t), where x_t = t data +
(1 - t) noise. It yields x after every step, at last the data, so that other work may be done between two.
All of them go through the same equal steps, and never ask for the velocity at t = 1.

All randomness is a function of (seed of the request, index of the chunk, purpose), never of the batch that
the request happens to share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megatv.choices import Solver

PURPOSES = ("noise", "text")


def generator(seed: int, chunk: int, purpose: Literal["noise", "text"]) -> np.random.Generator:
    """The random stream of one chunk of one request (Philox, counter-based)."""
    key = np.array([seed, len(PURPOSES) * chunk + PURPOSES.index(purpose)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 N(0, I), where every chunk starts (TV2TV section 2.3, step 2)."""
    return generator(seed, chunk, "noise").standard_normal(shape, np.float32)


Velocity = Callable[[Tensor, float], Tensor]


def euler(velocity: Velocity, x: Tensor, steps: int) -> Iterator[Tensor]:
    """First order, one evaluation a step: the paper's (TV2TV table 6)."""
    for t, following in pairwise(_times(steps)):
        x = x + (following - t) * velocity(x, t)
        yield x


def heun(velocity: Velocity, x: Tensor, steps: int) -> Iterator[Tensor]:
    """Second order, two evaluations a step but for the last (Karras et al. 2022, algorithm 1)."""
    for t, following in pairwise(_times(steps)):
        v = velocity(x, t)
        ahead = x + (following - t) * v
        if following < 1:
            v = (v + velocity(ahead, following)) / 2
            ahead = x + (following - t) * v
        x = ahead
        yield x


def dpmpp(velocity: Velocity, x: Tensor, steps: int) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation a step.

    It extrapolates the data that the model predicts, D = x + (1 - t) v, linearly in l = log(t / (1 - t)) and
    solves the rest exactly: x' = (1 - t') / (1 - t) x + t' (1 - exp(l - l')) D. Where l is infinite, in the
    first step and the last, there is nothing to extrapolate over, and the step is Euler's.
    """
    earlier: tuple[Tensor, float] | None = None  # the prediction before, and its l
    for t, following in pairwise(_times(steps)):
        data = predicted = x + (1 - t) * velocity(x, t)
        decay = 0.0
        if t > 0 and following < 1:
            here, there = _log_odds(t), _log_odds(following)
            decay = math.exp(here - there)
            if earlier is not None:
                before, at = earlier
                predicted = data + (there - here) / (2 * (here - at)) * (data - before)
            earlier = data, here
        x = (1 - following) / (1 - t) * x + following * (1 - decay) * predicted
        yield x


SOLVERS: dict[Solver, Callable[[Velocity, Tensor, int], Iterator[Tensor]]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp": dpmpp,
}


def _times(steps: int) -> list[float]:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()


def _log_odds(t: float) -> float:
    return math.log(t / (1 - t))


def guide(velocity: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance v = v_u + scale (v_c - v_u) (TV2TV footnote 5).

    velocity [2B, ...]: the B conditional rows, then their B text-free twins. Returns [B, ...].
    """
    conditional, unconditional = velocity.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def pick_tokens(logits: Tensor, temperature: float, uniform: list[float], top_p: float = 1.0) -> list[int]:
    """One token a row: softmax(logits / temperature) by inverse CDF, or the most likely one at 0.

    logits [B, V]; uniform: one number in [0, 1) a row. Below 1, `top_p` leaves only the likeliest tokens that
    together have at least this probability (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(-1).tolist()
    likely = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        ordered, places = likely.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        likely = torch.zeros_like(likely).scatter_(-1, places, ordered)
    cumulative = likely.cumsum(-1)
    threshold = torch.tensor(uniform, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
    return (cumulative <= threshold[:, None]).sum(-1).tolist()

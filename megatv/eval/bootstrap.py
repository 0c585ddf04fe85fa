"""How sure a figure is: resampling the starts that it was measured on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Estimate = dict[str, float | None]
"""{value, low, high}; None where it could be measured, since JSON has no NaN: one start has no interval."""


def estimate(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    draws: int = 1000,
    seed: int = 0,
    basic: bool = False,
) -> Estimate:
    """A statistic of `count` starts and its 95 % bootstrap interval.

    statistic takes the rows of the starts to use, int64 [count], and may answer NaN. The same seed draws the
    same starts, so what is a difference between two models must be one statistic, paired by start.
    `basic`: 2 value - quantiles, for statistics that are larger on a resample than on its source, such as
    distances between distributions; else the quantiles themselves. One start says nothing of others: low and
    high are None.
    """
    value = float(statistic(np.arange(count)))
    if count < 2:
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    rng = np.random.default_rng(seed)
    samples = np.array([statistic(rng.integers(0, count, count)) for _ in range(draws)])
    samples = samples[np.isfinite(samples)]
    if not np.isfinite(value) or not len(samples):
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(samples, [0.025, 0.975]).tolist()
    if basic:
        low, high = 2 * value - high, 2 * value - low
    return {"value": value, "low": low, "high": high}

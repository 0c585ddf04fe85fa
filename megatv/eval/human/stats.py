"""Two numbers for what people said: how far they agree, and how sure a mean is."""

from __future__ import annotations

import math

import numpy as np

RESAMPLES, BLOCK_NUMBERS = 10_000, 1 << 20
"""Resamples of the bootstrap, and the most numbers of them that are held at once (8 bytes each)."""


def krippendorff_alpha(table: np.ndarray) -> float:
    """Krippendorff's alpha of ordered answers: 1 perfect agreement, 0 what chance gives, less when opposed.

    table: float [raters, items], NaN where a rater did not judge an item. Ordinal difference, "Computing
    Krippendorff's Alpha-Reliability" (K. Krippendorff, 2011), section E: the coincidences o[c, k] of values
    within items, against those expected from the values' totals n alone.
    NaN when no item was judged twice or all answers are equal, since then there is nothing to agree on.
    """
    values, codes = np.unique(table[~np.isnan(table)], return_inverse=True)
    counts = np.zeros((table.shape[1], len(values)))  # [items, values]: who gave what to which item
    np.add.at(counts, (np.nonzero(~np.isnan(table))[1], codes), 1)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return math.nan
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    observed = (pairs / (counts.sum(1) - 1)[:, None, None]).sum(0)
    totals = observed.sum(0)
    ranks = np.cumsum(totals) - totals / 2  # sum of n_g for g from c to k, less half of both ends
    difference = (ranks[:, None] - ranks[None]) ** 2
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    disagreement = (expected * difference).sum()
    return float(1 - (observed * difference).sum() / disagreement) if disagreement else math.nan


def mean_interval(values: np.ndarray, items: np.ndarray, seed: int) -> dict[str, float]:
    """{mean, low, high, n} of values float [n] with a 95 % interval by the percentile bootstrap.

    items: int [n], what each value is about. Whole items are drawn anew, with all their answers, because the
    answers about one item depend on each other (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 8 on what to resample). So the interval is about other videos, judged by the same people. Answers
    about a single item, one answer among them, say nothing of other items: low and high are NaN, and without
    any answer mean is NaN too.
    """
    _, group = np.unique(items, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    if len(sums) < 2:
        mean = float(values.mean()) if len(values) else math.nan
        return {"mean": mean, "low": math.nan, "high": math.nan, "n": len(values)}
    rng = np.random.Generator(np.random.Philox(seed))
    chances = np.full(len(sums), 1 / len(sums))
    means = np.empty(RESAMPLES)
    for block in np.array_split(means, math.ceil(RESAMPLES * len(sums) / BLOCK_NUMBERS)):
        weights = rng.multinomial(len(sums), chances, len(block))
        block[:] = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}

"""Which examples of a step share a row, and which rows go to which rank, so that none waits for the slowest.

Packed rows are of one shape and their matrix products cost the same; what differs is attention: the number
of query and key pairs that see each other (`megatv.model.cost`). It is estimated from what the shards note of
every example (valid latents, bytes of text), so that each rank knows the costs of the whole step without
reading it. Pure functions of numbers; which examples a step holds does not depend on the ranks.
"""

from __future__ import annotations

import numpy as np

BYTES_PER_TOKEN = 4
"""Bytes of English a token of Llama-3 covers, roughly; text is a small part of the pairs."""


def attention_pairs(chunks: np.ndarray, text_tokens: np.ndarray, tokens_per_chunk: int) -> np.ndarray:
    """float64 [n]: pairs that see each other in sequences of N chunks with T text tokens spread evenly.

        text    T (T + 1) / 2 text tokens, and P N / 2 clean rows each: half of the video lies before it
        clean   P N rows, each sees T (N + 1) / 2N text tokens and P (N + 1) / 2 clean rows, its own too
        noisy   the same: its own chunk's noisy copy instead of the clean one

    Where text stands all at the start, as in Think2V, chunks see more of it and it sees nothing of them.
    """
    n, t, p = (np.asarray(x, np.float64) for x in (chunks, text_tokens, tokens_per_chunk))
    return t * (t + 1) / 2 + t * p * n / 2 + 2 * p * n * (t + p * n) * (n + 1) / (2 * np.maximum(n, 1))


def text_rows(chunks: np.ndarray, text_bytes: np.ndarray, bytes_per_token: float) -> np.ndarray:
    """float64 [n]: text rows of examples of so many chunks and bytes of words.

    The words, BOF and EOF of every chunk, BOS, EOS and the newline after the meta-caption.
    """
    return 2 * chunks + 3 + text_bytes / bytes_per_token


def example_costs(lengths: np.ndarray, tokens_per_chunk: int, text_budget: int) -> np.ndarray:
    """float64 [n]: estimated pairs of examples from their `lengths` [n, 2] (valid latents, bytes of text).

    `text_budget` cuts what is longer.
    """
    chunks, text_bytes = lengths.T
    text = np.minimum(text_rows(chunks, text_bytes, BYTES_PER_TOKEN), text_budget)
    return attention_pairs(chunks, text, tokens_per_chunk)


def deal(costs: np.ndarray, plain: list[list[int]]) -> list[list[int]]:
    """Deal the items whose costs these are to hands of equal size; returns each hand's items.

    plain: the hands to compare with. In rounds from the costliest items down, every hand gets one item, and
    the costliest of a round goes to the hand with the smallest sum so far: the sums come close, and so do the
    items that hands play at the same time. The plain hands stay where their largest sum is no larger.
    """
    hands: list[list[int]] = [[] for _ in plain]
    sums = np.zeros(len(plain))
    ranked = np.argsort(-costs, kind="stable")
    for items in ranked.reshape(-1, len(plain)):
        for item, hand in zip(items, np.argsort(sums, kind="stable"), strict=True):
            hands[hand].append(int(item))
            sums[hand] += costs[item]
    return hands if sums.max() < largest_sum(costs, plain) else plain


def largest_sum(costs: np.ndarray, hands: list[list[int]]) -> float:
    """The costliest hand's sum; over the mean of all hands it is the imbalance."""
    return max(float(costs[hand].sum()) for hand in hands)

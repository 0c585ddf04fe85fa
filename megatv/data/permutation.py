"""Permutations of 0 .. n-1 as functions: any element alone, without a list of the others.

A Feistel network (Luby and Rackoff, SIAM J. Comput. 1988) permutes the smallest domain of an even number of
bits that holds n; where it leaves 0 .. n-1 it is applied again until it is back (cycle walking, Black and
Rogaway, CT-RSA 2002). The domain is below 4 n, so that takes two rounds on average, and an order of ten
million examples takes no memory and no time to make.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

ROUNDS = 8
"""Four make a Feistel network as good as random (Luby and Rackoff); twice that for halves of few bits."""


def permuted(places: np.ndarray, n: int, *key: int) -> np.ndarray:
    """int64, shape of `places`: where the permutation of 0 .. n-1 with this key puts each of them.

    A function of its arguments alone: equal on every machine and in every version of numpy.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = np.asarray(places, np.uint64).reshape(-1).copy()
    outside = np.arange(len(out))
    while len(outside):
        left, right = out[outside] >> half, out[outside] & mask
        for round_key in _round_keys(key):
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        walked = left << half | right
        out[outside] = walked
        outside = outside[walked >= n]
    return out.astype(np.int64).reshape(np.shape(places))


def permuted_each(places: Iterable[tuple[int, int, tuple[int, ...]]]) -> list[int]:
    """`permuted(place, n, *key)` of every (place, n, key), those of one permutation together."""
    groups: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = defaultdict(list)
    for at, (place, n, key) in enumerate(places):
        groups[n, key].append((at, place))
    out = [0] * sum(map(len, groups.values()))
    for (n, key), members in groups.items():
        drawn = permuted(np.array([place for _, place in members]), n, *key)
        for (at, _), value in zip(members, drawn.tolist(), strict=True):
            out[at] = value
    return out


@functools.lru_cache(maxsize=4096)
def _round_keys(key: tuple[int, ...]) -> tuple[np.uint64, ...]:
    return tuple(np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

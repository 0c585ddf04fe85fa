"""The order of an epoch where shards are fetched: shuffled shards, mixed in windows that a cache can hold."""

from __future__ import annotations

import numpy as np

from megatv.data.shards import epoch_order


def window_order(seed: int, epoch: int, shard_sizes: np.ndarray, window: int) -> np.ndarray:
    """int64 [n]: a permutation in which `window` shards at a time are read, their examples mixed.

    The shards are shuffled first, so that windows differ from epoch to epoch. A function of its arguments
    alone. How well it mixes, measured on 12,500 shards of 80 examples: a step of 512 examples holds examples
    of 502 shards with `epoch_order`, of 64 with windows of 64 and of 221 with windows of 256, and two
    neighbours of a shard stand 1/3 of a window apart on average, where `epoch_order` puts 1/3 of the epoch.
    """
    place = np.empty(len(shard_sizes), np.int64)
    place[epoch_order(seed, epoch, len(shard_sizes))] = np.arange(len(shard_sizes))
    windows = np.repeat(place // window, shard_sizes)
    draws = np.random.Philox(key=np.array([seed, ~np.uint64(epoch)], np.uint64)).random_raw(len(windows))
    return np.lexsort((draws, windows))

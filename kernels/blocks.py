"""Block lists on a fixed grid, for FlexAttention and FlashAttention-4.

Their tiles stand on a grid and cannot start where a chunk starts, as those of `work.py` do. A block of the
grid is empty, full (every row sees every key) or partial (each pair must be asked). How many of its pairs are
visible follows from the overlap of intervals with its keys; the mask itself is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .record import AttentionRecord


@dataclass(frozen=True)
class BlockLists:
    """For each block of one side, its partial and its full blocks of the other side.

    partial_counts, full_counts    int32 [blocks]
    partial_indices, full_indices  int32 [blocks, other blocks]; the first `counts` of a line count
    """

    partial_counts: Tensor
    partial_indices: Tensor
    full_counts: Tensor
    full_indices: Tensor


def visible_pairs(record: AttentionRecord, rows: int, keys: int) -> np.ndarray:
    """int64 [row blocks, key blocks]: visible pairs of every block of a `rows` x `keys` grid."""
    host = record.host or record
    spans = host.intervals.numpy()
    # Rows that see the same, such as those of a chunk, are counted together as far as a block reaches.
    new = np.flatnonzero((spans[1:] != spans[:-1]).any((1, 2))) + 1
    starts = np.union1d(new, np.arange(0, record.rows, rows))
    heights = np.diff(starts, append=record.rows)
    edges = np.arange(0, record.rows, keys)
    lo, hi = spans[starts, :, 0, None], spans[starts, :, 1, None]  # [runs, 3, 1]
    seen = np.clip(np.minimum(hi, edges + keys) - np.maximum(lo, edges), 0, None).sum(1, dtype=np.int64)
    first = np.searchsorted(starts, np.arange(0, record.rows, rows))
    return np.add.reduceat(seen * heights[:, None], first, axis=0)


def block_lists(record: AttentionRecord, rows: int, keys: int) -> tuple[BlockLists, BlockLists]:
    """(key blocks of every row block, row blocks of every key block), on the record's device; kept with it.

    A block that sticks out of the row is never full: what is beyond the end has to be masked.
    """
    kept = _kept.setdefault(record, {})
    if (rows, keys) not in kept:
        pairs = visible_pairs(record, rows, keys)
        kept[rows, keys] = _lists(pairs, rows * keys, record), _lists(pairs.T, rows * keys, record)
    return kept[rows, keys]


_kept: WeakKeyDictionary[AttentionRecord, dict[tuple[int, int], tuple[BlockLists, BlockLists]]]
_kept = WeakKeyDictionary()


def _lists(pairs: np.ndarray, whole: int, record: AttentionRecord) -> BlockLists:
    full = pairs == whole
    tensors = []
    for chosen in ((pairs > 0) & ~full, full):
        tensors.append(chosen.sum(1, dtype=np.int32))
        tensors.append(np.argsort(~chosen, axis=1, kind="stable").astype(np.int32))
    return BlockLists(*(torch.from_numpy(t).to(record.intervals.device) for t in tensors))

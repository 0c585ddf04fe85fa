"""Work lists: which tiles of a packed row a kernel visits, and which of them need no mask.

A forward item is a tile of query rows with one key range for each of the three intervals; a backward item is
a tile of keys with one query range for each part (text, clean, noisy) of the packed row. Each range is cut
where certainty begins or ends, so a kernel masks only the few tiles at that cut:

    forward    [k_lo, k_full_hi) is seen by every row of the tile, [k_full_hi, k_hi) must be masked by row
    backward   [q_lo, q_full_lo) must be masked by row, [q_full_lo, q_hi) sees every key of the tile

Tiles start where chunks and documents start and never cross one, which is what makes the cuts so sharp: with
192 x 80 tiles of 4 packed query heads (48 rows) a kernel computes 1 to 2 % more than the visible pairs.
Everything follows from interval ends by comparison; the mask itself is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .record import AttentionRecord

COLUMNS = 11
"""lo and hi of the tile, then three ranges of three bounds."""


@dataclass(frozen=True, eq=False)
class Work:
    """Both lists of one tile size, as views of one table; longest item first, unused items all zero.

    forward   int32 [W, 11]: q_lo, q_hi, then (k_lo, k_full_hi, k_hi) for the intervals text, clean, own
    backward  int32 [V, 11]: k_lo, k_hi, then (q_lo, q_full_lo, q_hi) for the rows text, clean, noisy
    W and V depend on the layout, the tile size and the number of documents only, so that one CUDA graph
    serves every packing. Ranges that are empty have equal bounds.
    """

    table: Tensor
    forward_items: int

    @property
    def forward(self) -> Tensor:
        """The forward list, a view."""
        return self.table[: self.forward_items]

    @property
    def backward(self) -> Tensor:
        """The backward list, a view."""
        return self.table[self.forward_items :]


def make_work(record: AttentionRecord, query_rows: int, key_rows: int) -> Work:
    """The lists of a record that lies on the host, for tiles of at most `query_rows` x `key_rows`."""
    if query_rows < 1 or key_rows < 1:
        raise ValueError(f"tiles need at least one row and one key, got {query_rows} x {key_rows}")
    intervals = record.intervals.numpy()
    ends = record.documents.numpy()[:, 0, 1]
    chunk_edges = np.arange(record.text_rows, record.rows + 1, record.chunk_rows)
    edges = np.unique(np.concatenate([[0], ends, chunk_edges]))
    forward = _forward(intervals, *_tiles(edges, query_rows))
    backward = _backward(record, intervals, *_tiles(edges, key_rows))
    sizes = [_capacity(record, rows) for rows in (query_rows, key_rows)]
    table = np.zeros((sum(sizes), COLUMNS), np.int32)
    table[: len(forward)] = forward
    table[sizes[0] : sizes[0] + len(backward)] = backward
    return Work(torch.from_numpy(table), sizes[0])


def _capacity(record: AttentionRecord, size: int) -> int:
    """Most tiles that any packing of as many documents (and the padding after them) can take."""
    runs = min(len(record.documents) + 1, record.text_rows)
    text = (record.text_rows - runs) // size + runs if runs else 0
    return text + 2 * record.chunks * -(-record.chunk_rows // size)


def _tiles(edges: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every run between two edges into tiles from its start: their lo and hi."""
    counts = -(-np.diff(edges) // size)
    run = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(run)) - (np.cumsum(counts) - counts)[run]
    lo = edges[run] + within * size
    return lo, np.minimum(lo + size, edges[run + 1])


def _forward(intervals: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Within a tile all bounds rise, so its first and last row tell the smallest and the largest."""
    items, bounds = _items(lo, hi)
    first, last = intervals[lo], intervals[hi - 1]  # [tiles, 3, 2]
    bounds[..., 0], bounds[..., 2] = first[..., 0], last[..., 1]
    bounds[..., 1] = np.where(first[..., 0] == last[..., 0], first[..., 1], first[..., 0])
    return _longest_first(items, bounds)


def _backward(record: AttentionRecord, intervals: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Within a part of the row all bounds rise from document to document: the rows that see a key tile are
    one run, found by bisection, and those that see all of it are the end of that run."""
    items, bounds = _items(lo, hi)
    steps = (1, record.chunk_rows, record.chunk_rows)  # the rows of a chunk see the same: one of them will do
    starts = [0, record.text_rows, record.text_rows + record.chunks * record.chunk_rows]
    used = record.documents[-1, :, 1].tolist() if len(record.documents) else starts
    cuts = np.searchsorted(lo, [*starts, record.rows])  # tiles of text, clean and noisy keys
    padding = np.searchsorted(lo, used)
    for keys in range(3):
        tiles = slice(cuts[keys], padding[keys])
        for part in range(3) if keys < 2 else (2,):  # noisy keys are seen by noisy rows only
            spans = intervals[starts[part] : used[part] : steps[part]]
            # A clean row's own chunk follows its clean interval: together they are one run.
            sees_lo, sees_hi = spans[:, keys, 0], spans[:, 2 if part == keys == 1 else keys, 1]
            first = sees_hi.searchsorted(lo[tiles], side="right")
            last = sees_lo.searchsorted(hi[tiles])
            full = np.minimum(np.maximum(sees_hi.searchsorted(hi[tiles]), first), last)
            for column, row in enumerate((first, full, last)):
                bounds[tiles, part, column] = row * steps[part] + starts[part]
        tiles = slice(padding[keys], cuts[keys + 1])  # padding sees itself, row by row
        a, b = lo[tiles], hi[tiles]
        bounds[tiles, keys] = np.stack([a, np.where(b - a == 1, a, b), b], -1)
    bounds[bounds[..., 0] >= bounds[..., 2]] = 0
    return _longest_first(items, bounds)


def _items(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items [tiles, 11] with their tiles filled in, and a view [tiles, 3, 3] of their bounds."""
    items = np.zeros((len(lo), COLUMNS), np.int32)
    items[:, 0], items[:, 1] = lo, hi
    return items, items[:, 2:].reshape(-1, 3, 3)


def _longest_first(items: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    visits = (bounds[..., 2] - bounds[..., 0]).sum(-1)
    return items[np.argsort(-visits, kind="stable")]

"""Dense reference attention: the record's intervals, literally, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .record import AttentionRecord


def dense_mask(record: AttentionRecord, rows: slice = slice(None)) -> Tensor:
    """bool [queries, S]: True where a query of `rows` sees a key."""
    spans = record.intervals[rows]  # [Q, 3, 2]
    key = torch.arange(record.rows, device=spans.device)
    return ((key >= spans[:, :, :1]) & (key < spans[:, :, 1:])).any(1)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord) -> Tensor:
    """Softmax over the visible keys of every row; q [S, H, E], k and v [S, K, E] -> [S, H, E]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhe,khe->hqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~dense_mask(record), float("-inf"))
    return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)

"""Dense reference attention: the record's intervals, literally, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .record import AttentionRecord


def available(device: torch.device) -> str | None:
    """None: it serves everywhere."""
    return None


def dense_mask(record: AttentionRecord, rows: slice = slice(None)) -> Tensor:
    """bool [queries, S]: True where a query of `rows` sees a key."""
    spans = record.intervals[rows]  # [Q, 3, 2]
    key = torch.arange(record.rows, device=spans.device)
    return ((key >= spans[:, :, :1]) & (key < spans[:, :, 1:])).any(1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord, *, return_lse: bool, deterministic: bool
) -> tuple[Tensor, Tensor | None]:
    """Softmax over the visible keys of every row; q [S, H, E], k and v [S, K, E] -> [S, H, E], lse [S, H]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhe,khe->hqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~dense_mask(record), float("-inf"))
    out = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)
    wide = torch.promote_types(q.dtype, torch.float32)
    return out, scores.detach().to(wide).logsumexp(-1).T.contiguous() if return_lse else None

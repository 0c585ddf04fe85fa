"""Attention document by document through torch's scaled_dot_product_attention.

Documents of a packed row never see each other, so each is attended alone; documents of equal extent go
together as one batch. Queries are taken in blocks, so no mask larger than QUERY_BLOCK x document exists.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import AttentionRecord

QUERY_BLOCK = 2048


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord) -> Tensor:
    """q [S, H, E], k and v [S, K, E] -> [S, H, E]; padding rows return their own value."""
    group = q.shape[1] // k.shape[1]
    out = v.repeat_interleave(group, 1)  # what a row that sees only itself gets
    by_shape: dict[tuple[int, ...], list[list[list[int]]]] = defaultdict(list)
    for extent in record.documents.tolist():
        by_shape[tuple(hi - lo for lo, hi in extent)].append(extent)
    by_shape.pop((0, 0, 0), None)  # documents without a row
    for extents in by_shape.values():
        rows = torch.stack([torch.cat([torch.arange(lo, hi) for lo, hi in extent]) for extent in extents])
        rows = rows.to(q.device)  # [documents, length] rows of the packed row
        spans = record.intervals[rows]  # [documents, length, 3, 2]
        dq, dk, dv = (x[rows].transpose(1, 2) for x in (q, k, v))  # [documents, heads, length, E]
        pieces = []
        for lo in range(0, rows.shape[1], QUERY_BLOCK):
            part = spans[:, lo : lo + QUERY_BLOCK, :, :, None]
            key = rows[:, None, :]
            mask = torch.zeros(part.shape[0], part.shape[1], rows.shape[1], dtype=torch.bool, device=q.device)
            for run in range(3):
                mask |= (key >= part[:, :, run, 0]) & (key < part[:, :, run, 1])
            pieces.append(
                F.scaled_dot_product_attention(
                    dq[:, :, lo : lo + QUERY_BLOCK], dk, dv, attn_mask=mask[:, None], enable_gqa=group > 1
                )
            )
        done = torch.cat(pieces, 2).transpose(1, 2)  # [documents, length, H, E]
        out = out.index_copy(0, rows.flatten(), done.flatten(0, 1).to(out.dtype))
    return out

"""Attention document by document through torch's scaled_dot_product_attention.

Documents of a packed row never see each other, so each is attended alone; documents of like length go
together as one padded batch. Queries are taken in blocks, so no mask is larger than QUERY_BLOCK x document,
and the masks of a record are made once for all layers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import AttentionRecord

QUERY_BLOCK = 2048


@dataclass(frozen=True)
class _Bucket:
    """Documents that are attended as one batch of G rows, padded to length L by their own first row.

    rows   int64 [G, L], rows of the packed row         real  bool [G, L], False where padded
    masks  bool [G, 1, <= QUERY_BLOCK, L], one for each block of queries
    """

    rows: Tensor
    real: Tensor
    masks: list[Tensor]


_buckets: WeakKeyDictionary[AttentionRecord, list[_Bucket]] = WeakKeyDictionary()


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord) -> Tensor:
    """q [S, H, E], k and v [S, K, E] -> [S, H, E]; padding rows return their own value."""
    if record not in _buckets:
        _buckets[record] = _make_buckets(record)
    group = q.shape[1] // k.shape[1]
    out = v.repeat_interleave(group, 1)  # what a row that sees only itself gets
    for bucket in _buckets[record]:
        bq, bk, bv = (x[bucket.rows].transpose(1, 2) for x in (q, k, v))  # [G, heads, L, E]
        blocks = bq.split([mask.shape[2] for mask in bucket.masks], 2)
        pieces = [
            F.scaled_dot_product_attention(block, bk, bv, attn_mask=mask, enable_gqa=group > 1)
            for block, mask in zip(blocks, bucket.masks, strict=True)
        ]
        done = torch.cat(pieces, 2).transpose(1, 2)  # [G, L, H, E]
        out = out.index_copy(0, bucket.rows[bucket.real], done[bucket.real].to(out.dtype))
    return out


def _make_buckets(record: AttentionRecord) -> list[_Bucket]:
    """Documents of the same power of two go together: padding at most doubles their length."""
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for extent in record.documents.tolist():
        rows = torch.cat([torch.arange(lo, hi) for lo, hi in extent])
        if len(rows):
            by_size[len(rows).bit_length()].append(rows)
    device = record.intervals.device
    buckets = []
    for documents in by_size.values():
        length = max(map(len, documents))
        rows = torch.stack([F.pad(d, (0, length - len(d)), value=int(d[0])) for d in documents])
        real = torch.arange(length) < torch.tensor([len(d) for d in documents])[:, None]
        rows, real = rows.to(device), real.to(device)
        masks = []
        for lo in range(0, length, QUERY_BLOCK):
            spans = record.intervals[rows[:, lo : lo + QUERY_BLOCK], :, :, None]  # [G, block, 3, 2, 1]
            mask = torch.zeros(*spans.shape[:2], length, dtype=torch.bool, device=device)
            for run in range(3):
                key = rows[:, None]
                mask |= (key >= spans[:, :, run, 0]) & (key < spans[:, :, run, 1]) & real[:, None]
            masks.append(mask[:, None])
        buckets.append(_Bucket(rows, real, masks))
    return buckets

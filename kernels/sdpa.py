"""Attention document by document through torch's scaled_dot_product_attention.

Documents of a packed row never see each other, so each is attended alone; documents of like length go
together as one padded batch. Queries are taken in blocks, so no mask is larger than QUERY_BLOCK x document,
and the masks of a record are made once for all layers. Text and clean rows never meet a noisy key: their
blocks stop before them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .record import AttentionRecord

QUERY_BLOCK = 2048


@dataclass(frozen=True)
class _Bucket:
    """Documents that are attended as one batch of G rows, padded to length L by their own first row.

    rows   int64 [G, L], rows of the packed row         real  bool [G, L], False where padded
    masks  bool [G, 1, <= QUERY_BLOCK, <= L], one for each block of queries and the keys it looks at
    """

    rows: Tensor
    real: Tensor
    masks: list[Tensor]


_buckets: WeakKeyDictionary[AttentionRecord, list[_Bucket]] = WeakKeyDictionary()


def available(device: torch.device) -> str | None:
    """None: it serves everywhere."""
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord, *, return_lse: bool, deterministic: bool
) -> tuple[Tensor, Tensor | None]:
    """q [S, H, E], k and v [S, K, E] -> [S, H, E], lse [S, H]; padding rows return their own value.

    torch's operator keeps its log-sum-exp to itself, so asking for it costs a second product of q and k.
    """
    if record not in _buckets:
        _buckets[record] = _make_buckets(record)
    group = q.shape[1] // k.shape[1]
    out = v.repeat_interleave(group, 1)  # what a row that sees only itself gets
    # Of torch's kernels, only the fused ones for CUDA add up in an order of their own.
    kernel = sdpa_kernel(SDPBackend.MATH) if deterministic and q.is_cuda else nullcontext()
    for bucket in _buckets[record]:
        bq, bk, bv = (x[bucket.rows].transpose(1, 2) for x in (q, k, v))  # [G, heads, L, E]
        blocks = bq.split([mask.shape[2] for mask in bucket.masks], 2)
        with kernel:
            pieces = [
                F.scaled_dot_product_attention(
                    block,
                    bk[:, :, : mask.shape[3]],
                    bv[:, :, : mask.shape[3]],
                    attn_mask=mask,
                    enable_gqa=group > 1,
                )
                for block, mask in zip(blocks, bucket.masks, strict=True)
            ]
        done = torch.cat(pieces, 2).transpose(1, 2)  # [G, L, H, E]
        out = out.index_copy(0, bucket.rows[bucket.real], done[bucket.real].to(out.dtype))
    return out, _lse(q.detach(), k.detach(), _buckets[record]) if return_lse else None


def _lse(q: Tensor, k: Tensor, buckets: list[_Bucket]) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide) * q.shape[-1] ** -0.5, k.to(wide).repeat_interleave(q.shape[1] // k.shape[1], 1)
    lse = (q * k).sum(-1)  # a row that sees only itself
    for bucket in buckets:
        bq, bk = (x[bucket.rows].transpose(1, 2) for x in (q, k))
        blocks = bq.split([mask.shape[2] for mask in bucket.masks], 2)
        pieces = [
            (block @ bk[:, :, : mask.shape[3]].mT).masked_fill(~mask, float("-inf")).logsumexp(-1)
            for block, mask in zip(blocks, bucket.masks, strict=True)
        ]
        done = torch.cat(pieces, 2).transpose(1, 2)  # [G, L, H]
        lse[bucket.rows[bucket.real]] = done[bucket.real]
    return lse


def _make_buckets(record: AttentionRecord) -> list[_Bucket]:
    """Documents of the same power of two go together: padding at most doubles their length."""
    by_size: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for text, clean, noisy in record.documents.tolist():
        past = torch.cat([torch.arange(*text), torch.arange(*clean)])
        if len(past):
            by_size[(len(past) + noisy[1] - noisy[0]).bit_length()].append((past, torch.arange(*noisy)))
    device = record.intervals.device
    buckets = []
    for documents in by_size.values():
        parts = [_pad(part, [int(past[0]) for past, _ in documents]) for part in zip(*documents, strict=True)]
        rows, real = (torch.cat(pair, 1).to(device) for pair in zip(*parts, strict=True))
        visible, length = parts[0][0].shape[1], rows.shape[1]  # to text and clean rows, to noisy ones
        masks = []
        for first, last, keys in ((0, visible, visible), (visible, length, length)):
            for lo in range(first, last, QUERY_BLOCK):
                spans = record.intervals[rows[:, lo : min(lo + QUERY_BLOCK, last)], :, :, None]
                mask = torch.zeros(*spans.shape[:2], keys, dtype=torch.bool, device=device)
                key = rows[:, None, :keys]
                for run in range(3):  # spans are [G, block, 3, 2, 1]
                    mask |= (key >= spans[:, :, run, 0]) & (key < spans[:, :, run, 1]) & real[:, None, :keys]
                masks.append(mask[:, None])
        buckets.append(_Bucket(rows, real, masks))
    return buckets


def _pad(rows: Sequence[Tensor], fill: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of several documents as int64 [G, L], each filled up with a row of its own, and which are real."""
    length = max(map(len, rows))
    padded = [F.pad(r, (0, length - len(r)), value=value) for r, value in zip(rows, fill, strict=True)]
    return torch.stack(padded), torch.arange(length) < torch.tensor([len(r) for r in rows])[:, None]

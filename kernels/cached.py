"""Attention of new rows against a KV cache whose rows have their own lengths (the sampling path)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cached_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, causal: bool) -> Tensor:
    """Attend Q new rows per batch row to a cache that already holds their keys and values.

    q                 [B, Q, H, E]
    k_cache, v_cache  [B, L, K, E]; the new rows stand at slots lengths[b] .. lengths[b] + Q - 1
    lengths           int64 [B]: slots filled before this call
    causal            True for text (row i sees slots <= lengths[b] + i), False for a chunk (all of itself)
    Returns [B, Q, H, E].
    """
    queries, slots = q.shape[1], k_cache.shape[1]
    limit = lengths[:, None] + (torch.arange(queries, device=q.device)[None] + 1 if causal else queries)
    mask = torch.arange(slots, device=q.device) < limit[..., None]  # [B, Q or 1, L]
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        attn_mask=mask[:, None].expand(-1, 1, queries, -1),
        enable_gqa=q.shape[2] != k_cache.shape[2],
    )
    return out.transpose(1, 2)

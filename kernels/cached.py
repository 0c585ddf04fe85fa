"""Attention of new rows against a KV cache whose rows have their own lengths (the sampling path)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .fp8 import FP8


@overload
def cached_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, causal: bool
) -> Tensor: ...
@overload
def cached_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, causal: bool, return_lse: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def cached_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, causal: bool, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend Q new rows per batch row to a cache that already holds their keys and values.

    q                 [B, Q, H, E]
    k_cache, v_cache  [B, L, K, E], any strides; the new rows stand at slots lengths[b] .. lengths[b] + Q - 1.
                      In q's dtype, or both in fp8 (e4m3), which becomes q's dtype as it is read
    lengths           int64 [B]: slots filled before this call. Rows that were padded to Q may reach beyond L;
                      what the padding gets means nothing.
    causal            True for text (row i sees slots <= lengths[b] + i), False for a chunk (all of itself)
    return_lse        also return the natural log of every softmax's sum, at least fp32 [B, Q, H]
    Returns [B, Q, H, E]. On CUDA, fp16, bf16 and fp32 with E 64 or 128 run as a split-KV kernel that never
    waits for the device and can be captured in a CUDA graph. Raises ValueError for what does not fit.
    """
    _check(q, k_cache, v_cache, lengths)
    if q.is_cuda and find_spec("triton"):
        from . import decode_triton

        if q.dtype in decode_triton.DTYPES and q.shape[-1] in decode_triton.HEAD_DIMS:
            out, lse = decode_triton.decode_attention(q, k_cache, v_cache, lengths, causal=causal)
            return (out, lse) if return_lse else out
    return _masked(q, k_cache, v_cache, lengths, causal, return_lse)


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k_cache {tuple(k_cache.shape)}, v_cache {tuple(v_cache.shape)}"
    if q.dim() != 4 or k_cache.dim() != 4 or k_cache.shape != v_cache.shape:
        raise ValueError(f"cached_attention takes q [B, Q, H, E] and two caches [B, L, K, E], got {shapes}")
    if q.shape[0] != k_cache.shape[0] or q.shape[3] != k_cache.shape[3]:
        raise ValueError(f"q and the caches must have the same batch and head size, got {shapes}")
    if not q.numel() or not k_cache.numel():
        raise ValueError(f"cached_attention needs at least one of everything, got {shapes}")
    if q.shape[2] % k_cache.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are no multiple of {k_cache.shape[2]} key/value heads")
    if lengths.shape != q.shape[:1] or lengths.dtype != torch.int64:
        raise ValueError(f"lengths must be int64 [{len(q)}], got {lengths.dtype} {tuple(lengths.shape)}")
    if k_cache.dtype not in (q.dtype, FP8) or k_cache.dtype != v_cache.dtype or not q.dtype.is_floating_point:
        raise ValueError(
            f"q and the caches must have one floating dtype, or the caches {FP8}: got {q.dtype}, "
            f"{k_cache.dtype}, {v_cache.dtype}"
        )
    if not q.device == k_cache.device == v_cache.device == lengths.device:
        raise ValueError(
            f"q, the caches and lengths must be on one device, got {q.device}, {k_cache.device}, "
            f"{v_cache.device}, {lengths.device}"
        )


def _masked(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, causal: bool, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain torch, any device and dtype."""
    queries = q.shape[1]
    if not lengths.is_cuda:
        # Reading lengths costs nothing here: leave out the slots that nobody sees yet. By whole blocks of 32,
        # since torch's CPU kernel rounds the same then, however long the longest row is.
        used = -(-(int(lengths.max()) + queries) // 32) * 32
        k_cache, v_cache = k_cache[:, :used], v_cache[:, :used]
    k_cache, v_cache = k_cache.to(q.dtype), v_cache.to(q.dtype)
    limit = lengths[:, None] + (torch.arange(queries, device=q.device)[None] + 1 if causal else queries)
    mask = torch.arange(k_cache.shape[1], device=q.device) < limit[..., None]  # [B, Q or 1, L]
    mask = mask[:, None].expand(-1, 1, queries, -1)
    group = q.shape[2] // k_cache.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k_cache, v_cache))  # [B, heads, rows, E]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=group > 1).transpose(1, 2)
    if not return_lse:
        return out
    k = k.repeat_interleave(group, 1)
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(exact) @ k.to(exact).mT * q.shape[-1] ** -0.5
    return out, scores.masked_fill(~mask, -torch.inf).logsumexp(-1).transpose(1, 2)

"""What happens to queries and keys between projection and attention: optional norm, rotation, cache write.

On CUDA that is one memory-bound kernel, an operator that torch.compile and activation checkpointing see
through; elsewhere it is plain torch. Positions and scaling rules are the table's business.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from .fp8 import saturate


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + E/2]) of every head (RoFormer, arXiv 2104.09864, eq. 34; Llama's order).

    x [..., H, E]; table [2, ..., E], at least fp32: (cos, cos) and (-sin, sin) over the halves of a head.
    Returns like x.
    """
    cos, sin = table[..., None, :]
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def rotate_qk(
    q: Tensor,
    k: Tensor,
    table: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of a training row as attention wants them; differentiable.

    q [..., H, E], k [..., K, E], table [2, ..., E] as for `rotate`
    q_weight, k_weight  [E], both or none: RMSNorm over each head before the rotation, with `eps`
    Returns (q, k) in new memory. Raises ValueError for what does not fit.
    """
    _check(q, k, table, q_weight, k_weight)
    if _fused(q, table):
        return _rotate_operator(q, k, table, q_weight, k_weight, eps)
    return rotate(_normed(q, q_weight, eps), table), rotate(_normed(k, k_weight, eps), table)


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The same for sampling, without gradients: keys and values go straight to the cache.

    q [B, Q, H, E], k and v [B, Q, K, E], table [2, B, Q, E]
    k_cache, v_cache  [B, L, K, E], written in their own dtype at slots lengths[b] .. lengths[b] + Q - 1; what
                      would go beyond the last slot goes into it, so keep it spare where rows are padded.
                      In fp8 (e4m3) they have no scale, and what is larger than 448 becomes 448
    lengths           int64 [B], on the device: nothing waits for it
    Returns the rotated q. Raises ValueError for what does not fit.
    """
    _check(q, k, table, q_weight, k_weight)
    caches = f"k {tuple(k.shape)}, v {tuple(v.shape)}, caches {tuple(k_cache.shape)}, {tuple(v_cache.shape)}"
    if q.dim() != 4 or v.shape != k.shape or k_cache.shape != v_cache.shape:
        raise ValueError(f"rotate_and_store takes k, v [B, Q, K, E] and caches [B, L, K, E], got {caches}")
    if k_cache.dim() != 4 or k_cache.shape[0] != k.shape[0] or k_cache.shape[2:] != k.shape[2:]:
        raise ValueError(f"keys do not fit into the cache: {caches}")
    if lengths.shape != k.shape[:1] or lengths.dtype != torch.int64:
        raise ValueError(f"lengths must be int64 [{len(k)}], got {lengths.dtype} {tuple(lengths.shape)}")
    if not k.device == v.device == k_cache.device == v_cache.device == lengths.device:
        raise ValueError(f"k, v, caches and lengths must be on one device; k is on {k.device}")
    if _fused(q, table) and k_cache.stride(-1) == v_cache.stride(-1) == 1:
        return _store_operator(q, k, v, table, k_cache, v_cache, lengths, q_weight, k_weight, eps)
    row = torch.arange(k.shape[0], device=k.device)[:, None]
    slot = lengths[:, None] + torch.arange(k.shape[1], device=k.device)
    slot = slot.clamp_max(k_cache.shape[1] - 1)
    k_cache[row, slot] = saturate(rotate(_normed(k, k_weight, eps), table), k_cache.dtype)
    v_cache[row, slot] = saturate(v, v_cache.dtype)
    return rotate(_normed(q, q_weight, eps), table)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else F.rms_norm(x, (x.shape[-1],), weight, eps)


def _check(q: Tensor, k: Tensor, table: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> None:
    head_dim = q.shape[-1]
    if q.shape[:-2] != k.shape[:-2] or k.shape[-1] != head_dim or head_dim % 2:
        raise ValueError(
            f"q [..., H, E] and k [..., K, E] must agree but for their heads, E even: got {tuple(q.shape)} "
            f"and {tuple(k.shape)}"
        )
    if table.shape != (2, *q.shape[:-2], head_dim):
        raise ValueError(
            f"the rotation table must be {(2, *q.shape[:-2], head_dim)} for q {tuple(q.shape)}, got "
            f"{tuple(table.shape)}"
        )
    if (q_weight is None) != (k_weight is None):
        raise ValueError("give the norm weights of both q and k, or neither")
    for weight in (q_weight, k_weight):
        if weight is not None and weight.shape != (head_dim,):
            raise ValueError(f"a norm weight must be [{head_dim}], got {tuple(weight.shape)}")
    if not q.dtype == k.dtype or not q.device == k.device == table.device:
        raise ValueError(
            f"q, k and the table must share a device, q and k their dtype: got {q.dtype} on {q.device}, "
            f"{k.dtype} on {k.device}, table on {table.device}"
        )


def _fused(q: Tensor, table: Tensor) -> bool:
    """Whether the kernel can serve; its halves of a head must be a power of two."""
    half = q.shape[-1] // 2
    served = q.is_cuda and table.dtype == torch.float32 and q.dtype != torch.float64
    return served and half >= 16 and half & (half - 1) == 0 and find_spec("triton") is not None


@torch.library.custom_op("megatv_kernels::rotate_qk", mutates_args=())
def _rotate_operator(
    q: Tensor, k: Tensor, table: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from . import rope_triton

    return rope_triton.forward(q, k, table, q_weight, k_weight, eps)


@_rotate_operator.register_fake
def _(q, k, *rest):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))


@torch.library.custom_op("megatv_kernels::rotate_qk_back", mutates_args=())
def _rotate_back(dq: Tensor, dk: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """A rotation's transpose is its inverse: the gradient needs neither q nor k."""
    from . import rope_triton

    return rope_triton.forward(dq, dk, table, None, None, 0.0, inverse=True)


_rotate_back.register_fake(lambda dq, dk, table: (torch.empty_like(dq), torch.empty_like(dk)))


@torch.library.custom_op("megatv_kernels::norm_rotate_qk_back", mutates_args=())
def _norm_rotate_back(
    dq: Tensor,
    dk: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import rope_triton

    return rope_triton.backward(dq, dk, q, k, table, q_weight, k_weight, eps)


@_norm_rotate_back.register_fake
def _(dq, dk, q, k, table, q_weight, k_weight, eps):
    return tuple(torch.empty_like(x) for x in (dq, dk, q_weight, k_weight))


def _keep(ctx, inputs, output):
    q, k, table, q_weight, k_weight, ctx.eps = inputs
    normed = () if q_weight is None else (q, k, q_weight, k_weight)
    ctx.save_for_backward(table, *normed)


def _differentiate(ctx, dq, dk):
    table, *normed = ctx.saved_tensors
    dq, dk = dq.contiguous(), dk.contiguous()
    if not normed:
        return *_rotate_back(dq, dk, table), None, None, None, None
    q, k, q_weight, k_weight = normed
    gradients = _norm_rotate_back(dq, dk, q.contiguous(), k.contiguous(), table, q_weight, k_weight, ctx.eps)
    return *gradients[:2], None, *gradients[2:], None


_rotate_operator.register_autograd(_differentiate, setup_context=_keep)


@torch.library.custom_op("megatv_kernels::rotate_and_store", mutates_args=("k_cache", "v_cache"))
def _store_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> Tensor:
    from . import rope_triton

    return rope_triton.store(q, k, v, table, k_cache, v_cache, lengths, q_weight, k_weight, eps)


_store_operator.register_fake(lambda q, *rest: torch.empty_like(q, memory_format=torch.contiguous_format))

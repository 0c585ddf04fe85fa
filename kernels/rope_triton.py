"""The rotation of queries and keys as one pass over memory, forward and backward: launches and kernels.

A program takes one head of ROWS rows; programs of the same rows run side by side and find the rotation table
in L2. Everything is computed in fp32. `rope_cache` is the door and says what the arguments are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cache import isolate_compilers

isolate_compilers()
ROWS = 32


def forward(
    q: Tensor,
    k: Tensor,
    table: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """q [..., H, E] and k [..., K, E] normed (with weights) and rotated (backwards if `inverse`)."""
    q, k = q.contiguous(), k.contiguous()  # what the projections return already is
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    _launch(q, k, k, table, q_weight, k_weight, eps, q_out, k_out, k_out, None, inverse)
    return q_out, k_out


def store(
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
    """The same for sampling: k and v go to their slots of the cache, q comes back."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    q_out = torch.empty_like(q)
    _launch(q, k, v, table, q_weight, k_weight, eps, q_out, k_cache, v_cache, lengths, False)
    return q_out


def backward(
    dq: Tensor,
    dk: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and both norm weights; the latter are summed in a fixed order."""
    dq, dk, q, k = (x.contiguous() for x in (dq, dk, q, k))
    (heads, head_dim), kv_heads = q.shape[-2:], k.shape[-2]
    rows = q.numel() // (heads * head_dim)
    blocks = triton.cdiv(rows, ROWS)
    parts = q.new_empty(heads + kv_heads, blocks, head_dim, dtype=torch.float32)
    dq_in, dk_in = torch.empty_like(q), torch.empty_like(k)
    _norm_backward[(heads + kv_heads, blocks)](
        dq, dk, q, k, table, q_weight, k_weight, dq_in, dk_in, parts, rows, eps,
        HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    dq_weight, dk_weight = (x.sum((0, 1)) for x in parts.split([heads, kv_heads]))
    return dq_in, dk_in, dq_weight.to(q_weight.dtype), dk_weight.to(k_weight.dtype)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
    q_out: Tensor, k_out: Tensor, v_out: Tensor, lengths: Tensor | None, inverse: bool,
) -> None:  # fmt: skip
    (heads, head_dim), kv_heads = q.shape[-2:], k.shape[-2]
    rows = q.numel() // (heads * head_dim)
    storing = lengths is not None
    slots = k_out.shape[1] if storing else 1
    k_strides, v_strides = (x.stride()[:3] if storing else (0, 0, 0) for x in (k_out, v_out))
    grid = (heads + kv_heads * (2 if storing else 1), triton.cdiv(rows, ROWS))
    _rotate[grid](
        q, k, v, table.contiguous(), q if q_weight is None else q_weight, k if k_weight is None else k_weight,
        q if lengths is None else lengths, q_out, k_out, v_out, rows, q.shape[1], slots, eps,
        *k_strides, *v_strides,
        HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, ROWS=ROWS,
        NORM=q_weight is not None, INVERSE=inverse, STORE=storing, num_warps=4,
    )  # fmt: skip


@triton.jit
def _rotate(
    q_ptr, k_ptr, v_ptr, table_ptr, q_weight_ptr, k_weight_ptr, lengths_ptr, q_out, k_out, v_out,
    rows, queries, slots, eps, k_batch, k_slot, k_head, v_batch, v_slot, v_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
    NORM: tl.constexpr, INVERSE: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """One head of ROWS rows: heads of q, then of k, then (when storing) of v."""
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    half = tl.arange(0, HALF)
    if head < HEADS:
        at = (row * HEADS + head) * (2 * HALF)
        _rotate_head(q_ptr, at, q_out, at, table_ptr, q_weight_ptr, row, rows, real, eps, HALF, NORM, INVERSE)
        return
    head = (head - HEADS) % KV_HEADS
    at = (row * KV_HEADS + head) * (2 * HALF)
    k_to, v_to = at, at
    if STORE:
        b = row // queries
        # rows that are padded beyond a full cache end in its last slot, which nobody sees
        slot = tl.minimum(tl.load(lengths_ptr + b, mask=real, other=0) + row % queries, slots - 1)
        k_to = b * k_batch + slot * k_slot + head * k_head
        v_to = b * v_batch + slot * v_slot + head * v_head
        if tl.program_id(0) >= HEADS + KV_HEADS:
            for part in tl.static_range(2):
                column = part * HALF + half
                v = tl.load(v_ptr + at[:, None] + column, mask=real[:, None])
                tl.store(v_out + v_to[:, None] + column, _cast(v, v_out), mask=real[:, None])
            return
    _rotate_head(k_ptr, at, k_out, k_to, table_ptr, k_weight_ptr, row, rows, real, eps, HALF, NORM, INVERSE)


@triton.jit
def _rotate_head(
    x_ptr, at, out_ptr, to, table_ptr, weight_ptr, row, rows, real, eps,
    HALF: tl.constexpr, NORM: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """The pairs (x[i], x[i + HALF]) turned by the table's angles."""
    lo, hi = _load_halves(x_ptr, at, real, HALF)
    if NORM:
        scale = tl.rsqrt(tl.sum(lo * lo + hi * hi, 1) / (2 * HALF) + eps)[:, None]
        weight_lo, weight_hi = _load_weight(weight_ptr, HALF)
        lo, hi = lo * scale * weight_lo, hi * scale * weight_hi
    cos, sin = _load_turn(table_ptr, row, rows, real, HALF)
    if INVERSE:
        sin = -sin
    _store_halves(out_ptr, to, real, lo * cos - hi * sin, hi * cos + lo * sin, HALF)


@triton.jit
def _norm_backward(
    dq_ptr, dk_ptr, q_ptr, k_ptr, table_ptr, q_weight_ptr, k_weight_ptr, dq_in, dk_in, parts_ptr, rows, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One head of ROWS rows; the weight's gradient of each program goes to a place of its own."""
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    parts_ptr += (head * tl.num_programs(1) + tl.program_id(1)) * (2 * HALF)
    if head < HEADS:
        at = (row * HEADS + head) * (2 * HALF)
        _norm_backward_head(
            dq_ptr, q_ptr, dq_in, at, table_ptr, q_weight_ptr, parts_ptr, row, rows, eps, HALF
        )
    else:
        at = (row * KV_HEADS + head - HEADS) * (2 * HALF)
        _norm_backward_head(
            dk_ptr, k_ptr, dk_in, at, table_ptr, k_weight_ptr, parts_ptr, row, rows, eps, HALF
        )


@triton.jit
def _norm_backward_head(
    dy_ptr, x_ptr, dx_ptr, at, table_ptr, weight_ptr, parts_ptr, row, rows, eps, HALF: tl.constexpr
):
    """With n = x s, s = (mean x^2 + eps)^-1/2, y = R (w n) and g = R^T dy: dx = s (w g - n mean(w g n))."""
    real = row < rows
    dy_lo, dy_hi = _load_halves(dy_ptr, at, real, HALF)
    cos, sin = _load_turn(table_ptr, row, rows, real, HALF)
    g_lo, g_hi = dy_lo * cos + dy_hi * sin, dy_hi * cos - dy_lo * sin
    lo, hi = _load_halves(x_ptr, at, real, HALF)
    scale = tl.rsqrt(tl.sum(lo * lo + hi * hi, 1) / (2 * HALF) + eps)[:, None]
    lo, hi = lo * scale, hi * scale
    half = tl.arange(0, HALF)
    tl.store(parts_ptr + half, tl.sum(g_lo * lo, 0))
    tl.store(parts_ptr + HALF + half, tl.sum(g_hi * hi, 0))
    weight_lo, weight_hi = _load_weight(weight_ptr, HALF)
    g_lo, g_hi = g_lo * weight_lo, g_hi * weight_hi
    along = (tl.sum(g_lo * lo + g_hi * hi, 1) / (2 * HALF))[:, None]
    _store_halves(dx_ptr, at, real, scale * (g_lo - lo * along), scale * (g_hi - hi * along), HALF)


@triton.jit
def _load_halves(ptr, at, real, HALF: tl.constexpr):
    """fp32 [ROWS, HALF] twice; rows that are not real hold 0."""
    here = ptr + at[:, None] + tl.arange(0, HALF)
    lo = tl.load(here, mask=real[:, None], other=0.0)
    hi = tl.load(here + HALF, mask=real[:, None], other=0.0)
    return lo.to(tl.float32), hi.to(tl.float32)


@triton.jit
def _store_halves(ptr, to, real, lo, hi, HALF: tl.constexpr):
    here = ptr + to[:, None] + tl.arange(0, HALF)
    tl.store(here, _cast(lo, ptr), mask=real[:, None])
    tl.store(here + HALF, _cast(hi, ptr), mask=real[:, None])


@triton.jit
def _cast(x, ptr):
    """x as what `ptr` points to; e4m3 saturates, as `fp8.saturate` does."""
    if ptr.dtype.element_ty == tl.float8e4nv:
        x = tl.clamp(x.to(tl.float32), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(ptr.dtype.element_ty)


@triton.jit
def _load_turn(table_ptr, row, rows, real, HALF: tl.constexpr):
    """cos and sin [ROWS, HALF] of the table [2, rows, 2 HALF], whose rows hold (cos, cos) and (-sin, sin)."""
    here = table_ptr + row[:, None] * (2 * HALF) + tl.arange(0, HALF)
    cos = tl.load(here, mask=real[:, None], other=0.0)
    sin = tl.load(here + tl.cast(rows, tl.int64) * (2 * HALF) + HALF, mask=real[:, None], other=0.0)
    return cos, sin


@triton.jit
def _load_weight(weight_ptr, HALF: tl.constexpr):
    half = tl.arange(0, HALF)
    return tl.load(weight_ptr + half).to(tl.float32), tl.load(weight_ptr + HALF + half).to(tl.float32)

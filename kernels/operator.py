"""Kernel pairs as one operator of torch: autograd, torch.compile and activation checkpointing see through it.

An operator takes tensors and numbers only, so the record goes in as its tensors and is found again inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import load
from .record import record_of


@torch.library.custom_op("megatv_kernels::attention", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    host_intervals: Tensor,
    documents: Tensor,
    text_rows: int,
    chunk_rows: int,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """out [S, H, E] and lse fp32 [S, H] of `backend`; q, k, v contiguous."""
    record = record_of(intervals, host_intervals, documents, text_rows, chunk_rows)
    return load(backend).forward(q, k, v, record)


@forward.register_fake
def _(q, k, v, intervals, host_intervals, documents, text_rows, chunk_rows, backend, deterministic):
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("megatv_kernels::attention_backward", mutates_args=())
def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    intervals: Tensor,
    host_intervals: Tensor,
    documents: Tensor,
    text_rows: int,
    chunk_rows: int,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, like q, k, v."""
    record = record_of(intervals, host_intervals, documents, text_rows, chunk_rows)
    return load(backend).backward(dout, q, k, v, out, lse, record, deterministic)


@backward.register_fake
def _(dout, q, k, v, *rest):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx, inputs, output):
    *tensors, ctx.text_rows, ctx.chunk_rows, ctx.backend, ctx.deterministic = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*tensors[:3], out, lse, *tensors[3:])


def _differentiate(ctx, dout, _):
    numbers = ctx.text_rows, ctx.chunk_rows, ctx.backend, ctx.deterministic
    gradients = backward(dout.contiguous(), *ctx.saved_tensors, *numbers)
    return *gradients, *[None] * 7


forward.register_autograd(_differentiate, setup_context=_keep)

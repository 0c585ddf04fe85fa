"""Attention through torch's FlexAttention: the intervals as a mask function, the blocks from arithmetic.

On a GPU the call is compiled to Triton kernels, tuned by trying torch's candidates on the first call of a
shape. On a CPU it runs uncompiled, dense and without a backward pass (torch has none there): for tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .blocks import block_lists
from .cache import isolate_compilers
from .record import AttentionRecord

BLOCK = 128
OPTIONS = {"ROWS_GUARANTEED_SAFE": True}
"""A record refuses rows without a live key, so the kernel need not look for them."""


def available(device: torch.device) -> str | None:
    """None where torch has FlexAttention kernels, else why not."""
    if device.type not in ("cuda", "cpu"):
        return f"torch has no FlexAttention for {device.type}"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord, *, return_lse: bool, deterministic: bool
) -> tuple[Tensor, Tensor | None]:
    """q [S, H, E], k and v [S, K, E] -> [S, H, E], lse [S, H]. Its backward pass has one order always."""
    out = kernel(q.device.type)(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        block_mask=block_mask(record),
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=OPTIONS,
        return_aux=AuxRequest(lse=True) if return_lse else None,
    )
    if not return_lse:
        return out[0].transpose(0, 1), None
    out, aux = out
    return out[0].transpose(0, 1), aux.lse[0].T.detach().contiguous()


def block_mask(record: AttentionRecord) -> BlockMask:
    """The record as FlexAttention reads it, made once for all layers."""
    if record not in _masks:
        by_rows, by_keys = block_lists(record, BLOCK, BLOCK)
        _masks[record] = BlockMask(
            (record.rows, record.rows),
            kv_num_blocks=by_rows.partial_counts[None, None],
            kv_indices=by_rows.partial_indices[None, None],
            full_kv_num_blocks=by_rows.full_counts[None, None],
            full_kv_indices=by_rows.full_indices[None, None],
            q_num_blocks=by_keys.partial_counts[None, None],
            q_indices=by_keys.partial_indices[None, None],
            full_q_num_blocks=by_keys.full_counts[None, None],
            full_q_indices=by_keys.full_indices[None, None],
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=_sees(record),
        )
    return _masks[record]


_masks: WeakKeyDictionary[AttentionRecord, BlockMask] = WeakKeyDictionary()


def _sees(record: AttentionRecord) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    bounds = record.intervals.permute(1, 2, 0).contiguous()  # [3, 2, S]: neighbours load neighbours

    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        text, clean, own = ((key >= bounds[i, 0, row]) & (key < bounds[i, 1, row]) for i in range(3))
        return text | clean | own

    return sees


@functools.cache
def kernel(device_type: str) -> Callable:
    """torch's flex_attention as it runs on such a device."""
    if device_type == "cpu":
        return flex_attention
    isolate_compilers()
    return torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")

"""Attention through FlashAttention-4 (`flash_attn.cute`, package flash-attn-4) with block sparsity.

Written against 4.0.0b36: `flash_attn_func(mask_mod=, aux_tensors=, block_sparse_tensors=,
block_sparse_tensors_bwd=)`. Full blocks run without a mask, partial ones ask `mask_mod` pair by pair.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .blocks import BlockLists, block_lists
from .record import AttentionRecord

BLOCK = 128
"""The forward tile for head dims 64 and 128 on Hopper; a multiple of the backward pass's 64 and 128 rows."""
INSTALL = "pip install --pre flash-attn-4==4.0.0b36"


def available(device: torch.device) -> str | None:
    """None on a Hopper GPU with the package, else why not."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "FlashAttention-4 is used on Hopper GPUs (sm_90) only"
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        return f"FlashAttention-4 is not installed: {INSTALL}"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord, *, return_lse: bool, deterministic: bool
) -> tuple[Tensor, Tensor | None]:
    """q [S, H, E], k and v [S, K, E] -> [S, H, E], lse [S, H]. Gradients add up in no fixed order."""
    from flash_attn.cute import flash_attn_func

    forward, backward, bounds = _metadata(record)
    out, lse = flash_attn_func(
        q[None],
        k[None],
        v[None],
        mask_mod=_mask_mod(),
        aux_tensors=[bounds],
        block_sparse_tensors=forward,
        block_sparse_tensors_bwd=backward,
        return_lse=return_lse,
    )
    return out[0], lse[0].T.detach().contiguous() if return_lse else None


def _metadata(record: AttentionRecord) -> tuple:
    """Block lists of both passes and the bounds that partial blocks ask, made once for all layers."""
    if record not in _kept:
        by_rows, by_keys = block_lists(record, BLOCK, BLOCK)
        bounds = record.intervals.flatten(1).T.contiguous()  # [6, S]: neighbours load neighbours
        _kept[record] = _sparsity(by_rows), _sparsity(by_keys), bounds
    return _kept[record]


_kept: WeakKeyDictionary[AttentionRecord, tuple] = WeakKeyDictionary()


def _sparsity(lists: BlockLists) -> tuple:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(
        mask_block_cnt=lists.partial_counts[None, None],
        mask_block_idx=lists.partial_indices[None, None],
        full_block_cnt=lists.full_counts[None, None],
        full_block_idx=lists.full_indices[None, None],
        block_size=(BLOCK, BLOCK),
    )


@functools.cache
def _mask_mod() -> Callable:
    """The intervals in CuTe; made late, because the library must not be needed to import this module."""
    import cutlass
    import cutlass.cute as cute
    from flash_attn.cute.utils import scalar_to_ssa

    @cute.jit
    def sees(batch, head, row, key, seqlen_info, aux_tensors):
        bounds, at = aux_tensors[0], row[0]
        text_lo = scalar_to_ssa(bounds[0, at], cutlass.Int32)
        text_hi = scalar_to_ssa(bounds[1, at], cutlass.Int32)
        clean_lo = scalar_to_ssa(bounds[2, at], cutlass.Int32)
        clean_hi = scalar_to_ssa(bounds[3, at], cutlass.Int32)
        own_lo = scalar_to_ssa(bounds[4, at], cutlass.Int32)
        own_hi = scalar_to_ssa(bounds[5, at], cutlass.Int32)
        text = (key >= text_lo) & (key < text_hi)
        clean = (key >= clean_lo) & (key < clean_hi)
        return text | clean | ((key >= own_lo) & (key < own_hi))

    return sees

"""Rows shared by tensor-parallel siblings: four ways between a share of the rows and all of them.

    forward          backward          for rows that siblings
    all-gather       reduce-scatter    `gather_rows`: go on to use each with other weights
    reduce-scatter   all-gather        `scatter_rows`: hold terms of
    own share        all-gather        `share_rows`: hold alike
    all-gather       own share         `whole_rows`: go on to use alike

Megatron-core has the same (`tensor_parallel.mappings`), but asks CUDA for the device of its buffers and so
does not run on CPUs. Rows are the first dimension and divide evenly.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[r, ...] -> [R, ...]; the gradient is summed over siblings."""
    return Collective.apply(x, _all_gather, _reduce_scatter, group)


def scatter_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[R, ...] -> this sibling's share [r, ...] of the sum over siblings."""
    return Collective.apply(x, _reduce_scatter, _all_gather, group)


def share_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[R, ...], alike on all siblings, -> this sibling's share [r, ...]."""
    return Collective.apply(x, _own, _all_gather, group)


def whole_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[r, ...] -> [R, ...], used alike on all siblings."""
    return Collective.apply(x, _all_gather, _own, group)


def sum_gradient(weight: Tensor, group: dist.ProcessGroup) -> Tensor:
    """A weight that every sibling applies to its own rows: its gradient is the sum of theirs."""
    return Collective.apply(weight, lambda x, _: x.view_as(x), _all_reduce, group)


class Collective(torch.autograd.Function):
    """`forward_way(x, group)`, whose gradient goes through `backward_way`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_way: Any, backward_way: Any, group: dist.ProcessGroup) -> Tensor:
        """The collective there."""
        ctx.back, ctx.group = backward_way, group
        return forward_way(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The collective back."""
        return ctx.back(gradients[0], ctx.group), None, None, None


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(len(x) * group.size(), *x.shape[1:])
    dist.all_gather_into_tensor(out, x.contiguous(), group=group)
    return out


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(len(x) // group.size(), *x.shape[1:])
    dist.reduce_scatter_tensor(out, x.contiguous(), group=group)
    return out


def _own(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.chunk(group.size())[group.rank()].clone()


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = x.clone()
    dist.all_reduce(out, group=group)
    return out

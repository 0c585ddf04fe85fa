"""SwiGLU's pointwise half, which reads and writes the widest activations of a block.

torch.compile writes that kernel. In eager mode silu(gate) takes a trip to memory and stays there for the
backward pass, 14,336 numbers a row in an 8B block; compiled, it is recomputed from `gate`. RMSNorm is left to
torch, whose CUDA kernel is fused already. tools/bench_fused.py compares both with liger-kernel; no figure of
it has been measured on a GPU yet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import isolate_compilers


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, arXiv 2002.05202), like both of them; differentiable.

    On CUDA one kernel forward and one backward, compiled at the first call; plain torch elsewhere.
    """
    return compiled()(gate, up) if gate.is_cuda and find_spec("triton") else plain(gate, up)


def plain(gate: Tensor, up: Tensor) -> Tensor:
    """The same in torch's own two kernels."""
    return F.silu(gate) * up


@functools.cache  # importing the compiler takes seconds: only who needs it waits
def compiled() -> Callable[[Tensor, Tensor], Tensor]:
    """`plain`, compiled for all numbers of rows at once."""
    isolate_compilers()
    return torch.compile(plain, dynamic=True)

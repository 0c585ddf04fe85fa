"""fp8 for sampling: numbers of e4m3 with one fp32 scale a row, their product with a matrix, saturating casts.

e4m3 (Micikevicius et al., arXiv 2209.05433) has 4 significant bits and reaches 448. A weight keeps one scale
for every output, activations get one a row as they come: the largest number of a row becomes 448. The scales
are outside the sum of a product, so it is taken between the 8-bit numbers themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from .cache import isolate_compilers

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
MULTIPLE = 16
"""What both dimensions of a weight must be a multiple of for `torch._scaled_mm` on a GPU."""


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`. Beyond 448, where torch's own cast to e4m3 may give NaN, this stays at 448."""
    return x.clamp(-LARGEST, LARGEST).to(dtype) if dtype == FP8 else x.to(dtype)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> e4m3 [..., K] and fp32 scales [..., 1] whose product is x, to 4 significant bits."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / LARGEST  # a row of zeros stays one
    return saturate(x / scale, FP8), scale


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., K] times a weight e4m3 [N, K] with scales fp32 [N, 1], both as of `quantize_rows`.

    The rows of x are quantised on the way. Returns [..., N] in x's dtype; on a GPU K and N must be multiples
    of 16. No gradients.
    """
    quantize = compiled() if x.is_cuda and find_spec("triton") else quantize_rows
    rows, row_scale = quantize(x.reshape(-1, x.shape[-1]))
    return scaled_product(rows, row_scale, weight, scale, x.dtype).view(*x.shape[:-1], len(weight))


def scaled_product(
    rows: Tensor, row_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """e4m3 [M, K] times the transpose of e4m3 [N, K], times both scales [M, 1] and [N, 1]: `dtype` [M, N].

    On a GPU (compute capability 8.9 on) it is torch's row-wise kernel, with sums in fp32. Elsewhere the same
    arithmetic in plain torch: products of e4m3 are exact in fp32, only the order of the sum differs.
    """
    if rows.is_cuda:
        return torch._scaled_mm(rows, weight.t(), scale_a=row_scale, scale_b=scale.t(), out_dtype=dtype)
    return (rows.float() @ weight.float().t() * row_scale * scale.t()).to(dtype)


@functools.cache  # importing the compiler takes seconds: only who needs it waits
def compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`quantize_rows` as one kernel for all shapes: six passes over memory would cost what fp8 saves."""
    isolate_compilers()
    return torch.compile(quantize_rows, dynamic=True)

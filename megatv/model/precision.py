"""The precisions of sampling: fp32, bf16, and fp8 for the towers' matrices and the cache.

In fp8 the matrices of every block (Q, K, V, O and SwiGLU of both towers), nearly all of a large model, have
one scale an output; everything else is bf16. Keys and values have no scale: e4m3 reaches 448, what is larger
stays there. vLLM's fp8 cache without calibration scales by 1 as well (docs.vllm.ai, "Quantized KV Cache").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatv_kernels import FP8, fp8_linear, quantize_rows
from megatv_kernels.fp8 import MULTIPLE
from torch import Tensor, nn

from megatv.choices import PRECISION_CHOICES, PrecisionName


@dataclass(frozen=True)
class Precision:
    """What a model is sampled in.

    dtype   of activations and of most weights
    stored  of the towers' matrices, and of keys and values
    """

    name: str
    dtype: torch.dtype
    stored: torch.dtype


PRECISIONS: dict[PrecisionName, Precision] = {
    "fp32": Precision("fp32", torch.float32, torch.float32),
    "bf16": Precision("bf16", torch.bfloat16, torch.bfloat16),
    "fp8": Precision("fp8", torch.bfloat16, FP8),
}


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision of this name; `auto`: bf16 on a GPU that has it (compute capability 8.0), else fp32.

    Raises ValueError for an unknown name, or for fp8 where torch cannot multiply in it.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if name == "auto":
        name = "bf16" if capability >= (8, 0) else "fp32"
    if name not in PRECISIONS:
        raise ValueError(f"--precision {name}: is unknown; use {', '.join(PRECISION_CHOICES)}")
    if name == "fp8" and device.type == "cuda":
        gpu = f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}.{capability[1]})"
        if capability < (8, 9):
            raise ValueError(f"--precision fp8: {gpu} has no fp8, which came with 8.9; use --precision bf16")
        if capability < (9, 0) and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
            # its kernel left the current stream (pytorch issue 177651), so that no CUDA graph can hold it
            raise ValueError(f"--precision fp8: {gpu} needs torch 2.12 or newer; use --precision bf16")
    return PRECISIONS[name]


class Fp8Linear(nn.Module):
    """The product with a matrix, kept as `weight` e4m3 [N, K] and `scale` fp32 [N, 1]. No gradients."""

    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        small, scale = quantize_rows(weight.detach())
        self.weight = nn.Parameter(small, requires_grad=False)
        self.register_buffer("scale", scale)

    def store(self, weight: Tensor) -> None:
        """Quantise another matrix of this shape into the place of this one."""
        small, scale = quantize_rows(weight.to(self.scale.device))
        self.weight.copy_(small)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        return fp8_linear(x, self.weight, self.scale)


def convert(model: nn.Module, precision: Precision) -> None:
    """Bring a model, which may be on the meta device, to `precision`, one matrix after the other.

    Raises ValueError when a matrix does not fit fp8.
    """
    model.to(precision.dtype)
    if precision.stored != FP8:
        return
    for name, linear in list(model.named_modules()):
        if not (name.startswith("blocks.") and isinstance(linear, nn.Linear)):
            continue
        if any(size % MULTIPLE for size in linear.weight.shape):
            raise ValueError(
                f"--precision fp8: {name} is {list(linear.weight.shape)}, and fp8 takes multiples of "
                f"{MULTIPLE}; use --precision bf16"
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Fp8Linear(linear.weight))


@torch.no_grad()
def set_weight(model: nn.Module, name: str, weight: Tensor) -> None:
    """Copy `weight` into the parameter of this name, in whatever that is kept."""
    parent, _, child = name.rpartition(".")
    module = model.get_submodule(parent)
    if isinstance(module, Fp8Linear):
        module.store(weight)
    else:
        module.get_parameter(child).copy_(weight)

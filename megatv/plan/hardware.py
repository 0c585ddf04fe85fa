"""The hardware by its data sheets, and every assumption of the predictions, each with its source.

Nothing here has been measured by this project. Change a constant when a measurement of yours says better.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatv.clock import PEAK_FLOPS


@dataclass(frozen=True)
class Gpu:
    """One GPU by its data sheet, decimal units.

    memory, bandwidth   bytes, bytes/s of its HBM         flops   dense bf16 FLOPs a second
    nvlink              bytes/s to the other GPUs of a node, one way (half of the sheet's sum of both ways)
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    nvlink: float
    source: str


SHEET = "NVIDIA {} data sheet, SXM: 1,979 TFLOPS with sparsity, halved; NVLink 900 GB/s both ways, halved"
GPUS = {
    "h100-80gb": Gpu("H100 SXM", 80e9, 3.35e12, PEAK_FLOPS["H100"], 450e9, SHEET.format("H100")),
    "h200-141gb": Gpu("H200 SXM", 141e9, 4.8e12, PEAK_FLOPS["H200"], 450e9, SHEET.format("H200")),
}


@dataclass(frozen=True)
class Assumption:
    """A number that no measurement of ours gives."""

    value: float
    unit: str
    source: str


NODE_GPUS = Assumption(8, "GPUs", "DGX/HGX H100 and H200 data sheets: eight GPUs on one NVSwitch board")
NETWORK = Assumption(50e9, "bytes/s a GPU, one way", "DGX H100 data sheet: 400 Gb/s ConnectX-7")
MATMUL = Assumption(0.65, "of peak", "assumed for large bf16 products; tools/gpu_check.py measures it")
ATTENTION = Assumption(0.44, "of peak", "the goal of kernels/README.md, 3.34 / 4.9 of the matmul rate")
CONVOLUTION = Assumption(0.40, "of peak", "assumed for the U-Net's 3 x 3 convolutions")
NVLINK_SHARE = Assumption(0.75, "of the data sheet", "assumed for NCCL's rings on large messages")
NETWORK_SHARE = Assumption(0.80, "of the data sheet", "assumed for NCCL's rings on large messages")
HBM_SHARE = Assumption(0.80, "of the data sheet", "assumed for kernels that only move memory")
POINTWISE_PASSES = Assumption(6, "passes over saved bytes", "assumed: 2 forward (write, read), 4 backward")
HOST_LINK = Assumption(
    64e9, "bytes/s a GPU, one way", "H100 data sheet: PCIe Gen5 128 GB/s both ways, halved"
)
OPTIMIZER_PASSES = Assumption(10, "passes over fp32 gradients", "assumed: norm, clip, rounding, sum, update")
OVERLAP = Assumption(0.5, "of computing", "assumed: ZeRO-3 hides so much of its gathers, and of its scatters")
RESERVED = Assumption(3e9, "bytes", "assumed for the CUDA context, NCCL's and cuBLAS' buffers")
FRAGMENTS = Assumption(0.05, "of activations and buffers", "assumed for holes in torch's allocator")

ASSUMPTIONS = {
    name.lower(): value for name, value in list(globals().items()) if isinstance(value, Assumption)
}

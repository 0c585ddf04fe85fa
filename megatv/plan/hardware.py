"""The hardware by its data sheets, and the rates that the predictions use, each with its source.

A rate that names a GPU was measured on it; all others are assumptions. Change a constant when a measurement
of yours says better.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatv.clock import PEAK_FLOPS


@dataclass(frozen=True)
class Gpu:
    """One GPU by its data sheet, decimal units.

    memory, bandwidth   bytes, bytes/s of its HBM         flops   dense bf16 FLOPs a second
    nvlink              bytes/s to the other GPUs of a node, one way (half of the sheet's sum of both ways)
    network, host       bytes/s to other nodes, and to the node's own memory, one way
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    nvlink: float
    network: float
    host: float
    source: str


SHEET = (
    "NVIDIA data sheets of the {}: {} TFLOPS, NVLink {} GB/s and PCIe {} GB/s both ways, halved; "
    "network {} Gb/s a GPU"
)
GPUS = {
    "a100-80gb": Gpu("A100 SXM", 80e9, 2.039e12, PEAK_FLOPS["A100"], 300e9, 25e9, 32e9,
                     SHEET.format("A100 and DGX A100", "312", 600, 64, 200)),
    "h100-80gb": Gpu("H100 SXM", 80e9, 3.35e12, PEAK_FLOPS["H100"], 450e9, 50e9, 64e9,
                     SHEET.format("H100 and DGX H100", "1,979 (with sparsity, halved)", 900, 128, 400)),
    "h200-141gb": Gpu("H200 SXM", 141e9, 4.8e12, PEAK_FLOPS["H200"], 450e9, 50e9, 64e9,
                      SHEET.format("H200 and DGX H200", "1,979 (with sparsity, halved)", 900, 128, 400)),
    "b200-180gb": Gpu("B200 SXM", 180e9, 8e12, PEAK_FLOPS["B200"], 900e9, 50e9, 64e9,
                      SHEET.format("DGX B200", "4,500 (with sparsity, halved)", 1800, 128, 400)),
}  # fmt: skip


@dataclass(frozen=True)
class Assumption:
    """A number of the predictions. `measured_on` names the GPU that gave it; "": none did."""

    value: float
    unit: str
    source: str
    measured_on: str = ""


NODE_GPUS = Assumption(8, "GPUs", "DGX and HGX data sheets, A100 to B200: eight GPUs on one NVSwitch board")
MATMUL = Assumption(
    0.65, "of peak", "assumed for a layer's bf16 products; a plain one alone reached 0.76 on an H100"
)
ATTENTION = Assumption(
    0.286,
    "of peak",
    "docs/measured/h100.md, `cuda`, 8b_sports, 1 document: forward and backward together",
    measured_on="H100 SXM",
)
CONVOLUTION = Assumption(0.40, "of peak", "assumed for the U-Net's 3 x 3 convolutions")
NVLINK_SHARE = Assumption(0.75, "of the data sheet", "assumed for NCCL's rings on large messages")
NETWORK_SHARE = Assumption(0.80, "of the data sheet", "assumed for NCCL's rings on large messages")
HBM_SHARE = Assumption(0.80, "of the data sheet", "assumed for kernels that only move memory")
POINTWISE_PASSES = Assumption(6, "passes over saved bytes", "assumed: 2 forward (write, read), 4 backward")
OPTIMIZER_PASSES = Assumption(10, "passes over fp32 gradients", "assumed: norm, clip, rounding, sum, update")
OVERLAP = Assumption(0.5, "of computing", "assumed: ZeRO-3 hides so much of its gathers, and of its scatters")
RESERVED = Assumption(3e9, "bytes", "assumed for the CUDA context, NCCL's and cuBLAS' buffers")
FRAGMENTS = Assumption(0.05, "of activations and buffers", "assumed for holes in torch's allocator")

ASSUMPTIONS = {
    name.lower(): value for name, value in list(globals().items()) if isinstance(value, Assumption)
}

"""The Triton backend: fused attention of a packed row under its record, on any NVIDIA GPU since Ampere.

Forward, then a backward in two passes that write every gradient once: no atomics, so two runs agree to the
last bit, and no buffer that grows with S ** 2. The device code is in triton_attention_kernels.py. Under
TRITON_INTERPRET=1 (set before Triton is imported) it runs on a CPU, in fp16 and fp32, for tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .record import AttentionRecord


@dataclass(frozen=True)
class Tile:
    """How a kernel is launched: queries and keys of a tile, warps of a program, stages of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Config:
    """Tiles of the three kernels; those of `forward` and `query_gradient` have the same queries."""

    forward: Tile
    query_gradient: Tile
    key_gradient: Tile


CONFIGS = {
    ("hopper", 128): Config(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    ("hopper", 64): Config(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    ("ampere", 128): Config(Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(32, 64, 8, 2)),
    ("ampere", 64): Config(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
}
"""By kind of GPU and head dim: `hopper` for those with 228 KiB of shared memory a multiprocessor (9.0, 10.0),
`ampere` for all others since compute capability 8.0, which have at least 100 KiB. Compiled, none spills a
register; none has been tuned by its speed (docs/measured has that of `hopper`)."""


@dataclass(frozen=True)
class Launch:
    """One kernel with all it needs: to be run, or to be compiled for a GPU that is not here."""

    kernel: Any
    programs: int
    tile: Tile
    arguments: dict[str, Any]

    def run(self) -> None:
        """Start the kernel on the current stream of its tensors' device."""
        options = {"num_warps": self.tile.warps, "num_stages": self.tile.stages}
        with torch.cuda.device_of(self.arguments["intervals"]):
            self.kernel[(self.programs,)](**self.arguments, **options)


def available(device: torch.device) -> str | None:
    """None when this backend can serve `device`, else one sentence that says why not."""
    if find_spec("triton") is None:
        return "it needs the package triton, which exists for Linux: pip install triton"
    import triton

    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, not {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs a GPU of compute capability 8.0 (Ampere) or later, not {major}.{minor}"
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord) -> tuple[Tensor, Tensor]:
    """q [S, H, E], k and v [S, K, E], contiguous -> out [S, H, E] and lse fp32 [S, H] (natural log)."""
    launch, out, lse = plan_forward(q, k, v, record, config_for(q))
    launch.run()
    return out, lse


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    record: AttentionRecord,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients dq [S, H, E], dk and dv [S, K, E] of what `forward` returned; deterministic in any case."""
    launches, gradients = plan_backward(dout, q, k, v, out, lse, record, config_for(q))
    for launch in launches:
        launch.run()
    return gradients


def config_for(q: Tensor) -> Config:
    """The tiles for the head dim of q and the GPU that it is on."""
    kind = "hopper"
    if q.device.type == "cuda":
        shared = torch.cuda.get_device_properties(q.device).shared_memory_per_multiprocessor
        kind = "hopper" if shared >= 228 * 1024 else "ampere"
    return CONFIGS[kind, q.shape[-1]]


def plan_forward(
    q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord, config: Config
) -> tuple[Launch, Tensor, Tensor]:
    """The forward kernel over these tensors, and its outputs (out, lse), filled when it has run."""
    from .triton_attention_kernels import forward_kernel

    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    tile = config.forward
    work = record.work(tile.queries, config.key_gradient.keys).forward
    arguments = {
        **_common(q, k, record, tile),
        **{"work": work, "q": q, "k_tiles": _boxes(k, tile.keys), "v_tiles": _boxes(v, tile.keys)},
        **{"out": out, "lse": lse},
    }
    return Launch(forward_kernel, len(work) * q.shape[1], tile, arguments), out, lse


def plan_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    record: AttentionRecord,
    config: Config,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """The two passes, in the order in which they must run, and (dq, dk, dv), filled when they have."""
    from .triton_attention_kernels import key_gradient_kernel, query_gradient_kernel

    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    rows, heads = q.shape[:2]
    stats = q.new_empty((2, heads, rows), dtype=torch.float32)
    work = record.work(config.forward.queries, config.key_gradient.keys)
    shared = {"stats": stats, "total_rows": rows, "scale": _scale(q)}
    tile = config.query_gradient
    arguments = {
        **_common(q, k, record, tile),
        **shared,
        **{"work": work.forward, "k_tiles": _boxes(k, tile.keys), "v_tiles": _boxes(v, tile.keys)},
        **{"q": q, "out": out, "dout": dout, "lse": lse, "dq": dq},
    }
    first = Launch(query_gradient_kernel, len(work.forward) * heads, tile, arguments)
    tile = config.key_gradient
    arguments = {
        **_common(q, k, record, tile),
        **shared,
        **{
            "work": work.backward,
            "q_tiles": _boxes(q, tile.queries),
            "dout_tiles": _boxes(dout, tile.queries),
        },
        **{"k": k, "v": v, "dk": dk, "dv": dv},
    }
    second = Launch(key_gradient_kernel, len(work.backward) * k.shape[1], tile, arguments)
    return [first, second], (dq, dk, dv)


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5


def _common(q: Tensor, k: Tensor, record: AttentionRecord, tile: Tile) -> dict[str, Any]:
    """What all three kernels are told."""
    return {
        **{"intervals": record.intervals, "scale_log2": _scale(q) * math.log2(math.e)},
        **{"HEADS": q.shape[1], "KV_HEADS": k.shape[1], "DIM": q.shape[2]},
        **{"QUERIES": tile.queries, "KEYS": tile.keys},
    }


def _boxes(x: Tensor, rows: int) -> Any:
    """A descriptor of x [S, heads, E] as a matrix [S, heads * E], to be read in boxes of [rows, E]."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x.flatten(1), [rows, x.shape[-1]])

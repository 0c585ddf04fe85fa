"""The CUDA backend: attention of a packed row under its record, written for Hopper (H100, H200).

The kernels are in cuda/, compiled by cuda_build.py and launched by cuda_driver.py.
"""

from __future__ import annotations

import functools
import math
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from . import cuda_build
from .cuda_driver import BFLOAT16, FLOAT16, FLOAT32, SWIZZLE_128B, SWIZZLE_NONE, Driver, Module, TensorMap
from .record import AttentionRecord

KINDS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.float32: FLOAT32}
SWIZZLE_BYTES = 128
SUM_ROWS = 64  # of a box of dQ's sums
STATISTICS_ALIGNMENT = 4  # TMA wants pitches of 16 bytes


def available(device: torch.device | str) -> str | None:
    """None when this backend can serve `device`, else one sentence that says why not."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"backend 'cuda' needs a Hopper GPU (compute capability 9.0), not {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"backend 'cuda' needs a Hopper GPU (compute capability 9.0), {device} has {major}.{minor}"
    if cuda_build.find_nvcc() is None and not cuda_build.is_installed():
        return (
            "backend 'cuda' needs nvcc to compile its kernels: install the CUDA toolkit, or install this "
            "package where nvcc is with MEGATV_BUILD_KERNELS=1 pip install ."
        )
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecord) -> tuple[Tensor, Tensor]:
    """Attention of q [S, H, E] over k, v [S, K, E], contiguous, bf16 or fp16, E 64 or 128.

    Returns out [S, H, E] and the natural log of each row's sum of exponentials, fp32 [S, H]. Keys that a row
    does not see have no influence as long as they are finite.
    """
    launch = _Launch("attention_forward", q, k)
    items = record.work(launch.packed_rows, _key_rows(launch.module)).forward
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    launch(
        (launch.kv_heads, len(items)),
        launch.box(q, launch.group, launch.packed_rows),
        launch.box(k, 1, launch.shape.keys),
        launch.box(v, 1, launch.shape.keys),
        _address(items),
        _address(record.intervals),
        _address(out),
        _address(lse),
        c_int(launch.heads),
        c_int(launch.group),
        c_float(launch.scale * math.log2(math.e)),
    )
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
    """Gradients dq, dk, dv of a forward call, from dout [S, H, E], contiguous like all the others.

    dk and dv are always summed in a fixed order. dq is summed by atomic adds in fp32, unless `deterministic`:
    then a kernel of its own computes it, at the cost of S and dP once more (seven products instead of five).
    """
    rows, heads, _ = q.shape
    pitch = -(-rows // STATISTICS_ALIGNMENT) * STATISTICS_ALIGNMENT
    statistics = q.new_empty((2, heads, pitch), dtype=torch.float32)
    launch = _Launch("attention_statistics", q, k)
    launch(
        (-(-rows * heads // launch.shape.rows), 1),
        _address(out),
        _address(dout),
        _address(lse),
        _address(statistics),
        c_int(rows),
        c_int(heads),
        c_int(pitch),
    )
    sums = None if deterministic else torch.zeros_like(q, dtype=torch.float32)
    dk, dv = _key_gradients(dout, q, k, v, statistics, sums, record)
    dq = torch.empty_like(q)
    if sums is None:
        _query_gradient(dout, q, k, v, statistics, record, dq)
    else:
        launch = _Launch("attention_round", q, k)
        blocks = -(-q.numel() // launch.shape.rows)
        launch((blocks, 1), _address(sums), _address(dq), c_float(launch.scale), c_int64(q.numel()))
    return dq, dk, dv


def _key_gradients(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    statistics: Tensor,
    sums: Tensor | None,
    record: AttentionRecord,
) -> tuple[Tensor, Tensor]:
    """dk and dv; dq / scale is added to `sums` where there are any."""
    launch = _Launch("attention_backward_keys" if sums is None else "attention_backward", q, k)
    items = record.work(_packed_rows(launch.module, launch.group), launch.shape.keys).backward
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    q_box = launch.box(q, 1, launch.shape.rows)
    launch(
        (launch.kv_heads, len(items)),
        q_box,
        launch.box(k, 1, launch.shape.keys),
        launch.box(v, 1, launch.shape.keys),
        launch.box(dout, 1, launch.shape.rows),
        launch.statistics(statistics, len(q)),
        q_box if sums is None else launch.box(sums, 1, SUM_ROWS),
        _address(items),
        _address(record.intervals),
        _address(dk),
        _address(dv),
        c_int(launch.kv_heads),
        c_int(launch.group),
        c_float(launch.scale),
    )
    return dk, dv


def _query_gradient(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, statistics: Tensor, record: AttentionRecord, dq: Tensor
) -> None:
    launch = _Launch("attention_backward_queries", q, k)
    items = record.work(launch.packed_rows, _key_rows(launch.module)).forward
    launch(
        (launch.kv_heads, len(items)),
        launch.box(q, launch.group, launch.packed_rows),
        launch.box(k, 1, launch.shape.keys),
        launch.box(v, 1, launch.shape.keys),
        launch.box(dout, launch.group, launch.packed_rows),
        _address(statistics),
        c_int(statistics.shape[-1]),
        _address(items),
        _address(record.intervals),
        _address(dq),
        c_int(launch.heads),
        c_int(launch.group),
        c_float(launch.scale),
    )


class _Launch:
    """A kernel, for inputs of these shapes, on their device and its current stream."""

    def __init__(self, kernel: str, q: Tensor, k: Tensor) -> None:
        self.kernel, self.device, self.guard = kernel, q.device, torch.cuda.device_of(q)
        self.heads, self.kv_heads = q.shape[1], k.shape[1]
        self.group, self.scale = self.heads // self.kv_heads, q.shape[2] ** -0.5
        self.module = _module(q.device, q.dtype, q.shape[2])
        self.shape = self.module.shape(kernel)

    @property
    def packed_rows(self) -> int:
        """Query rows of a tile that holds all query heads of a KV head."""
        return self.shape.rows // self.group

    def __call__(self, grid: tuple[int, int], *arguments: Any) -> None:
        with self.guard:  # the launch makes this device current; others may have another one
            self.module.launch(self.kernel, grid, _stream(self.device), *arguments)

    def box(self, tensor: Tensor, heads: int, rows: int) -> TensorMap:
        """A map of [S, heads, E] whose boxes are 128 bytes of the columns of `heads` heads of `rows` rows."""
        assert tensor.is_contiguous()
        length, all_heads, columns = tensor.shape
        size = tensor.element_size()
        pitch = columns * size
        sizes, strides = (columns, all_heads, length), (pitch, all_heads * pitch)
        box = SWIZZLE_BYTES // size, heads, rows
        kind = KINDS[tensor.dtype]
        return TensorMap(self.module.driver, tensor.data_ptr(), kind, sizes, strides, box, SWIZZLE_128B)

    def statistics(self, tensor: Tensor, length: int) -> TensorMap:
        """A map of [2, H, :length] of [2, H, pitch] whose boxes are both numbers of a query tile."""
        _, heads, pitch = tensor.shape
        sizes, strides, box = (length, heads, 2), (4 * pitch, 4 * heads * pitch), (self.shape.rows, 1, 2)
        return TensorMap(self.module.driver, tensor.data_ptr(), FLOAT32, sizes, strides, box, SWIZZLE_NONE)


@functools.cache
def _module(device: torch.device, dtype: torch.dtype, head_dim: int) -> Module:
    image = cuda_build.image(str(dtype).removeprefix("torch."), head_dim)
    return Module(Driver(), device.index, image)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _packed_rows(module: Module, group: int) -> int:
    return module.shape("attention_forward").rows // group


def _key_rows(module: Module) -> int:
    """All kernels but the deterministic dQ take their work from one tile's lists: one table, one copy."""
    return module.shape("attention_backward").keys


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())

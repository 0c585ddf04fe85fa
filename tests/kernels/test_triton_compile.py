"""The attention kernels compiled for GPUs that need not be here: what they take, and what they use."""

import functools

import numpy as np
import pytest
import torch
from megatv_kernels import Document, build_record
from megatv_kernels import triton_attention as backend
from megatv_kernels.triton_compile import compile_for

pytest.importorskip("triton", reason="Triton is not installed (Linux x86_64 only): pip install -e .[dev]")
pytestmark = pytest.mark.slow
CASES = [("hopper", 90), ("hopper", 100), ("ampere", 80), ("ampere", 120)]
SHARED = {80: 163, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a block may take (CUDA C programming guide, table of compute capabilities)."""
USED = {80: ("HMMA", "LDSM"), 90: ("HGMMA", "UTMALDG"), 100: ("UTCHMMA", "UTMALDG"), 120: ("HMMA", "UTMALDG")}
"""What multiplies (warp-wide, wgmma, tcgen05) and what brings the tiles (TMA since 90)."""


@functools.cache
def launches(kind: str, head_dim: int) -> list[backend.Launch]:
    """Forward and both backward passes of one layer of the 8B model: 32 heads, 8 KV heads, 13,056 rows."""
    document = Document(np.repeat(np.arange(26), 22), 22 * np.arange(1, 27))
    record = build_record([document], text_rows=576, chunk_rows=240, chunks=26)
    q, k = (torch.empty(record.rows, n, head_dim, dtype=torch.bfloat16, device="meta") for n in (32, 8))
    config = backend.CONFIGS[kind, head_dim]
    forward, out, lse = backend.plan_forward(q, k, k, record, config)
    return [forward, *backend.plan_backward(q, q, k, k, out, lse, record, config)[0]]


@pytest.mark.parametrize("number", range(3), ids=["forward", "query_gradient", "key_gradient"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("kind", "capability"), CASES)
def test_kernels_fit(kind, capability, head_dim, number):
    launch = launches(kind, head_dim)[number]
    tile = launch.tile
    taken = compile_for(
        launch.kernel, launch.arguments, warps=tile.warps, stages=tile.stages, capability=capability
    )
    assert taken.local == 0 and not {"LDL", "STL"} & set(taken.instructions)
    assert taken.shared <= SHARED[capability] * 1024
    assert all(taken.instructions[name] for name in USED[capability])

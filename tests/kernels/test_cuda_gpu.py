"""The CUDA kernels on a Hopper GPU, against dense attention in fp64: what no emulator can prove."""

import numpy as np
import pytest
import torch
from megatv_kernels import Document, attention, build_record, cuda_attention

REASON = cuda_attention.available("cuda") if torch.cuda.is_available() else "there is no GPU"
pytestmark = [pytest.mark.skipif(REASON is not None, reason=str(REASON)), pytest.mark.timeout(300)]

ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
PAPER = ["t" * 108 + ("t" * 18 + "c") * 26], {"text_rows": 576, "chunk_rows": 240, "chunks": 26}
PACKED = (
    ["t" * 27 + ("t" * 18 + "c") * 3, "c" * 2, "t" * 200 + "c", "ctctc"],
    {"text_rows": 320, "chunk_rows": 240, "chunks": 10},
)
"""Four documents of different kinds, text and chunks left over as padding."""
RAGGED = ["tcc" * 4, "t" * 300, "cct" * 3], {"text_rows": 310, "chunk_rows": 37, "chunks": 15}
"""Chunks that fit no tile."""


@pytest.fixture(autouse=True)
def poison():
    """Fresh tensors hold NaN, so what a kernel does not write shows."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(was)


def visibility(word):
    return Document(
        np.array([word[:i].count("c") for i, x in enumerate(word) if x == "t"], np.int32),
        np.array([word[:i].count("t") for i, x in enumerate(word) if x == "c"], np.int32),
    )


def make_inputs(packing, dtype, head_dim, heads, kv_heads):
    words, layout = packing
    record = build_record([visibility(word) for word in words], **layout).to("cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    shapes = [(record.rows, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return record, [torch.randn(shape, generator=rng, device="cuda").to(dtype) for shape in shapes]


def run(record, inputs, deterministic):
    q, k, v, dout = inputs
    out, lse = cuda_attention.forward(q, k, v, record)
    return out, lse, *cuda_attention.backward(dout, q, k, v, out, lse, record, deterministic)


def dense(record, inputs):
    """Head by head, so that a full-sized row fits."""
    q, k, v, dout = (x.double() for x in inputs)
    group = q.shape[1] // k.shape[1]
    dk, dv, rest = torch.zeros_like(k), torch.zeros_like(v), []
    for head in range(q.shape[1]):
        at = slice(head // group, head // group + 1)
        qkv = [q[:, head, None].requires_grad_(), k[:, at].detach().requires_grad_(), v[:, at].detach()]
        qkv[2].requires_grad_()
        out, lse = attention(*qkv, record, backend="reference", return_lse=True)
        dq, dk_part, dv_part = torch.autograd.grad(out, qkv, dout[:, head, None])
        dk[:, at] += dk_part
        dv[:, at] += dv_part
        rest.append((out.detach(), lse, dq))
    out, lse, dq = (torch.cat(parts, 1) for parts in zip(*rest, strict=True))
    return out, lse, dq, dk, dv


def check(got, expected, dtype):
    """Three roundings on the whole; the worst of thousands of rows may be off by more (seen: 4.1)."""
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, expected, strict=True):
        size = b.flatten(1).norm(dim=1)
        errors = (a.double() - b).flatten(1).norm(dim=1) / size.clamp(min=size.mean())
        on_the_whole = (a.double() - b).norm() / b.norm()
        limits = (1e-4, 1e-4) if name == "lse" else (3 * ROUNDING[dtype], 8 * ROUNDING[dtype])
        assert on_the_whole < limits[0], f"{name} is off by {on_the_whole:.1e} on the whole"
        assert errors.max() < limits[1], f"{name}: row {errors.argmax()} is off by {errors.max():.1e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (6, 2), (2, 2), (5, 1)])
@pytest.mark.parametrize("packing", [PACKED, RAGGED], ids=["packed", "ragged"])
def test_kernels_equal_dense_attention(packing, dtype, head_dim, heads, kv_heads):
    record, inputs = make_inputs(packing, dtype, head_dim, heads, kv_heads)
    expected = dense(record, inputs)
    for deterministic in (False, True):
        check(run(record, inputs, deterministic), expected, dtype)


def test_full_sized_row():
    record, inputs = make_inputs(PAPER, torch.bfloat16, 128, heads=4, kv_heads=1)
    check(run(record, inputs, False), dense(record, inputs), torch.bfloat16)


def test_results_repeat_to_the_last_bit():
    """Twenty runs of a full-sized row, so that a race shows. Only dq added in any order may differ."""
    record, inputs = make_inputs(PAPER, torch.bfloat16, 128, heads=32, kv_heads=8)
    first = run(record, inputs, True)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(record, inputs, True), strict=True))
        out, lse, dq, dk, dv = run(record, inputs, False)
        same = zip((first[0], first[1], first[3], first[4]), (out, lse, dk, dv), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
        assert (dq.double() - first[2].double()).norm() < 2**-8 * first[2].double().norm()


def test_one_graph_serves_every_packing_of_a_layout():
    """A captured call reads the lists anew: change what they hold, replay, and get the other packing."""
    words, layout = PACKED
    other = [words[1], words[3], words[0], words[2]]
    record, inputs = make_inputs(PACKED, torch.bfloat16, 128, heads=8, kv_heads=2)
    changed, _ = make_inputs((other, layout), torch.bfloat16, 128, heads=8, kv_heads=2)
    run(record, inputs, False), run(changed, inputs, False)  # makes the lists, loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(record, inputs, False)
    record.intervals.copy_(changed.intervals)
    for key, work in record._work.items():
        work.table.copy_(changed._work[key].table)
    graph.replay()
    check(got, dense(changed, inputs), torch.bfloat16)


def test_autograd_uses_the_kernels_on_side_streams_too():
    record, inputs = make_inputs(RAGGED, torch.bfloat16, 128, heads=8, kv_heads=2)
    q, k, v = (x.requires_grad_() for x in inputs[:3])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out = attention(q, k, v, record, backend="cuda", deterministic=True)
        out.backward(inputs[3])
    torch.cuda.synchronize()
    expected = run(record, [x.detach() for x in inputs], True)
    assert torch.equal(out, expected[0])
    assert all(torch.equal(x.grad, g) for x, g in zip((q, k, v), expected[2:], strict=True))

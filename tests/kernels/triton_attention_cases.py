"""The Triton backend against dense attention in fp64, on a GPU or in Triton's interpreter.

Not collected by itself: test_triton_attention.py runs it in a process of its own, because the interpreter
must be chosen before Triton is imported and changes it for the whole process.
"""

import numpy as np
import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels import Document, attention, build_record
from megatv_kernels import triton_attention as backend
from megatv_kernels.triton_attention import Config, Tile

GPU = not triton.knobs.runtime.interpret
DEVICE = "cuda" if GPU else "cpu"
SMALL = Config(Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1))
EXACT, ROUGH = (torch.float16, 4e-3) if GPU else (torch.float32, 2e-5), (torch.float16, 4e-3)
"""A dtype and how far from fp64 it may be; the kernels take fp32 in the interpreter only."""


def record_of(words, **layout):
    """Documents as words over {t, c}: text tokens and chunks in order of time."""
    documents = [
        Document(
            np.array([w[:i].count("c") for i, x in enumerate(w) if x == "t"], np.int32),
            np.array([w[:i].count("t") for i, x in enumerate(w) if x == "c"], np.int32),
        )
        for w in words
    ]
    return build_record(documents, **layout).to(DEVICE)


def random_inputs(record, heads, kv_heads, dim, dtype, seed=0):
    """q, k, v and dout."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(record.rows, n, dim, generator=generator).to(DEVICE, dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    ]


def run(q, k, v, dout, record, config):
    """out, lse, dq, dk, dv, with whatever a kernel writes full of nan before."""
    launch, out, lse = backend.plan_forward(q, k, v, record, config)
    out.fill_(torch.nan), lse.fill_(torch.nan)
    launch.run()
    launches, gradients = backend.plan_backward(dout, q, k, v, out, lse, record, config)
    for tensor in (*gradients, launches[0].arguments["stats"]):
        tensor.fill_(torch.nan)
    for launch in launches:
        launch.run()
    return out, lse, *gradients


def dense(q, k, v, dout, record):
    """The same in fp64, from the mask."""
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*inputs, record, backend="reference", return_lse=True)
    return out, lse, *torch.autograd.grad(out, inputs, dout.double())


def compare(inputs, record, config, tolerance):
    for name, ours, exact in zip(
        ("out", "lse", "dq", "dk", "dv"), run(*inputs, record, config), dense(*inputs, record), strict=True
    ):
        torch.testing.assert_close(
            ours.double(),
            exact,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize(("heads", "kv_heads", "dtype", "tolerance"), [(4, 2, *EXACT), (3, 3, *ROUGH)])
def test_heads_and_dtypes(heads, kv_heads, dtype, tolerance):
    record = record_of(["tctt", "ttc"], text_rows=8, chunk_rows=5, chunks=2)
    compare(random_inputs(record, heads, kv_heads, 64, dtype), record, SMALL, tolerance)


def test_shipped_tiles():
    """Text over two tiles of queries, and every range longer than a tile of keys somewhere."""
    record = record_of(["t" * 130 + "cc"], text_rows=140, chunk_rows=70, chunks=2)
    dtype, tolerance = EXACT
    config = backend.config_for(torch.empty(0, 128, device=DEVICE))
    compare(random_inputs(record, 1, 1, 128, dtype), record, config, tolerance)


@settings(max_examples=6)
@given(
    words=st.lists(st.text("tc", max_size=4), max_size=3),
    chunk_rows=st.sampled_from([1, 7, 18, 33]),
    spare_text=st.sampled_from([0, 1, 17]),
    spare_chunks=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_any_documents(words, chunk_rows, spare_text, spare_chunks, seed):
    record = record_of(
        words,
        text_rows=sum(w.count("t") for w in words) + spare_text,
        chunk_rows=chunk_rows,
        chunks=sum(w.count("c") for w in words) + spare_chunks,
    )
    if record.rows:
        dtype, tolerance = EXACT
        compare(random_inputs(record, 1, 1, 64, dtype, seed), record, SMALL, tolerance)


def test_the_order_of_work_changes_no_bit():
    """Programs share nothing: in whatever order they run, each bit is the same."""
    record = record_of(["ttctc"], text_rows=4, chunk_rows=18, chunks=2)
    inputs = random_inputs(record, 1, 1, 64, EXACT[0])
    before = run(*inputs, record, SMALL)
    work = record.work(16, 16)
    work.forward.copy_(work.forward.flip(0))
    work.backward.copy_(work.backward.flip(0))
    for ours, again in zip(before, run(*inputs, record, SMALL), strict=True):
        assert torch.equal(ours, again)


def test_other_documents_and_padding_leak_nowhere():
    """What stands in their rows changes no bit of a document's outputs and gradients."""
    record = record_of(["ttc", "tct"], text_rows=6, chunk_rows=18, chunks=2)
    own = torch.cat([torch.arange(lo, hi) for lo, hi in record.documents[0].tolist()]).to(DEVICE)
    inputs = random_inputs(record, 1, 1, 64, EXACT[0])
    before = [x[own] for x in run(*inputs, record, SMALL)]
    others = torch.ones(record.rows, dtype=torch.bool, device=DEVICE)
    others[own] = False
    for x in inputs:
        x[others] *= 100
    for ours, again in zip(before, run(*inputs, record, SMALL), strict=True):
        assert torch.equal(ours, again[own])


def test_the_door_leads_here():
    """Through `attention`: a custom operator with autograd around these kernels."""
    record = record_of(["tctc"], text_rows=3, chunk_rows=10, chunks=2)
    *inputs, dout = random_inputs(record, 2, 1, 64, EXACT[0])
    leaves = [x.clone().requires_grad_() for x in inputs]
    out, lse = attention(*leaves, record, backend="triton", return_lse=True)
    expected = dense(*inputs, dout, record)
    for ours, exact in zip((out, lse, *torch.autograd.grad(out, leaves, dout)), expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=EXACT[1], atol=EXACT[1])

"""Attention backends and the cached path against a dense softmax in fp64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels import Document, attention, build_record, cached_attention
from megatv_kernels import sdpa as sdpa_module

LAYOUT = {"text_rows": 20, "chunk_rows": 3, "chunks": 8}
DOCUMENTS = ["ttctctt", "tc", "ttctctt", "c", "tttcc"]  # two of one shape, one chunk without any text
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def record_of(words, layout=LAYOUT):
    documents = [
        Document(
            np.array([w[:i].count("c") for i, x in enumerate(w) if x == "t"], np.int32),
            np.array([w[:i].count("t") for i, x in enumerate(w) if x == "c"], np.int32),
        )
        for w in words
    ]
    return build_record(documents, **layout)


def random_qkv(rows, seed=0, dtype=torch.float64, kv_heads=KV_HEADS):
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, kv_heads, kv_heads)
    return [torch.randn(rows, n, HEAD_DIM, generator=generator, dtype=dtype) for n in heads]


def softmax_by_hand(q, k, v, mask):
    """Row by row, head by head, over the keys that `mask` (bool [S, S]) shows."""
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = k[mask[row], head // group], v[mask[row], head // group]
            weights = torch.exp(keys @ q[row, head] / HEAD_DIM**0.5)
            out[row, head] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_backend_equals_a_softmax_by_hand(backend, kv_heads, mask_by_definition):
    record = record_of(DOCUMENTS)
    mask = torch.from_numpy(mask_by_definition(DOCUMENTS, **LAYOUT))
    q, k, v = random_qkv(record.rows, kv_heads=kv_heads)
    torch.testing.assert_close(
        attention(q, k, v, record, backend=backend), softmax_by_hand(q, k, v, mask), rtol=1e-12, atol=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text("tc", max_size=6), max_size=3), seed=st.integers(0, 99))
def test_sdpa_equals_reference_on_any_documents_with_gradients(words, seed):
    record = record_of(words, {"text_rows": 18, "chunk_rows": 2, "chunks": 18})
    gradients = []
    for backend in ("reference", "sdpa"):
        inputs = [x.requires_grad_() for x in random_qkv(record.rows, seed)]
        out = attention(*inputs, record, backend=backend)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
        gradients.append([out, *torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)])
    for reference, sdpa in zip(*gradients, strict=True):
        torch.testing.assert_close(sdpa, reference, rtol=1e-11, atol=1e-11)


def test_query_blocks_change_nothing(monkeypatch):
    record = record_of(DOCUMENTS)
    q, k, v = random_qkv(record.rows)
    whole = attention(q, k, v, record, backend="sdpa")
    monkeypatch.setattr(sdpa_module, "QUERY_BLOCK", 4)
    again = attention(q, k, v, record_of(DOCUMENTS), backend="sdpa")
    torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision_stays_near_fp64(dtype, tolerance):
    record = record_of(DOCUMENTS)
    q, k, v = random_qkv(record.rows)
    expected = attention(q, k, v, record, backend="reference")
    out = attention(q.to(dtype), k.to(dtype), v.to(dtype), record)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_padding_leaks_nowhere():
    """Whatever stands in padding rows, real rows answer the same, and finite gradients come back."""
    record = record_of(["tc"])
    real = torch.cat([torch.arange(lo, hi) for lo, hi in record.documents[0].tolist()])
    q, k, v = random_qkv(record.rows)
    before = attention(q, k, v, record)[real]
    poison = torch.ones(record.rows, dtype=torch.bool)
    poison[real] = False
    for x in (q, k, v):
        x[poison] = 1e30
    assert torch.equal(attention(q, k, v, record)[real], before)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_cached_attention_row_by_row(causal, kv_heads):
    """Every batch row has its own length; slots beyond it hold poison."""
    batch, queries, slots = 3, 2, 9
    lengths = torch.tensor([0, 4, 7])
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, queries, HEADS, HEAD_DIM, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, slots, kv_heads, HEAD_DIM, generator=generator, dtype=torch.float64)
    v = torch.randn(batch, slots, kv_heads, HEAD_DIM, generator=generator, dtype=torch.float64)
    for b, length in enumerate(lengths):
        k[b, length + queries :] = 1e30
        v[b, length + queries :] = 1e30
    out = cached_attention(q, k, v, lengths, causal=causal)
    for b, length in enumerate(lengths.tolist()):
        for i in range(queries):
            seen = length + (i + 1 if causal else queries)
            mask = torch.ones(1, seen, dtype=torch.bool)
            expected = softmax_by_hand(q[b, i : i + 1], k[b, :seen], v[b, :seen], mask)
            torch.testing.assert_close(out[b, i : i + 1], expected, rtol=1e-12, atol=1e-12)


def test_cached_steps_equal_the_packed_row():
    """A document fed step by step through a cache answers as its packed row does: text, noisy, clean."""
    word, chunk_rows = "ttctcct", LAYOUT["chunk_rows"]
    layout = {"text_rows": word.count("t"), "chunk_rows": chunk_rows, "chunks": word.count("c")}
    record = record_of([word], layout)
    q, k, v = random_qkv(record.rows)
    expected = attention(q, k, v, record, backend="reference")
    slots = layout["text_rows"] + layout["chunks"] * chunk_rows
    k_cache, v_cache = (torch.full((1, slots, KV_HEADS, HEAD_DIM), 1e30, dtype=k.dtype) for _ in "kv")
    length = text = chunk = 0

    def step(rows, causal):
        window = slice(length, length + len(rows))
        k_cache[0, window], v_cache[0, window] = k[rows], v[rows]
        out = cached_attention(q[rows][None], k_cache, v_cache, torch.tensor([length]), causal=causal)[0]
        torch.testing.assert_close(out, expected[rows], rtol=1e-12, atol=1e-12)

    for letter in word:
        if letter == "t":
            step([text], causal=True)
            text, length = text + 1, length + 1
        else:
            clean = [layout["text_rows"] + chunk * chunk_rows + i for i in range(chunk_rows)]
            step([row + layout["chunks"] * chunk_rows for row in clean], causal=False)
            step(clean, causal=False)  # overwrites the noisy copy's slots
            chunk, length = chunk + 1, length + chunk_rows


def test_misfits_are_refused():
    record = record_of(["tc"])
    q, k, v = random_qkv(record.rows)
    with pytest.raises(ValueError, match=f"record is for {record.rows} rows"):
        attention(q[:-1], k, v, record)
    with pytest.raises(ValueError, match="backend 'flash' is unknown: choose auto, reference, sdpa"):
        attention(q, k, v, record, backend="flash")
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3"):
        attention(q, k[:, [0, 0, 1]], v[:, [0, 0, 1]], record)

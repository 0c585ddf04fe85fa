"""Attention backends and the cached path against a dense softmax in fp64."""

from functools import partial
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels import Document, attention, backends, build_record, cached_attention, operator
from megatv_kernels import sdpa as sdpa_module
from megatv_kernels.reference import dense_mask
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

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
    for fault, inputs in (
        (f"record is for {record.rows} rows", (q[:-1], k, v)),
        (f"record is for {record.rows} rows", (q, k, v[:, :, :4])),
        (f"record is for {record.rows} rows", (q[None], k[None], v[None])),
        ("4 query heads are no multiple of 3", (q, k[:, [0, 0, 1]], v[:, [0, 0, 1]])),
        ("queries have head dim 4, keys 8", (q[:, :, :4], k, v)),
        ("one floating-point dtype, got torch.float64, torch.float32", (q, k.float(), v.float())),
        ("one floating-point dtype, got torch.int64", (q.long(), k.long(), v.long())),
        ("one device, got cpu, cpu, cpu and meta", (q, k, v, record.to("meta"))),
        ("one device, got meta, cpu, cpu and cpu", (q.to("meta"), k, v)),
    ):
        with pytest.raises(ValueError, match=fault):
            attention(*(*inputs, record)[:4])
    with pytest.raises(
        ValueError, match="'flash' is unknown: choose auto, cuda, fa4, triton, flex, sdpa, ref"
    ):
        attention(q, k, v, record, backend="flash")


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_sum_exp(backend, dtype, mask_by_definition):
    mask = torch.from_numpy(mask_by_definition(DOCUMENTS, **LAYOUT))
    record = record_of(DOCUMENTS)
    q, k, v = (x.to(dtype).requires_grad_() for x in random_qkv(record.rows))
    out, lse = attention(q, k, v, record, backend=backend, return_lse=True)
    scores = torch.einsum("qhe,khe->qkh", q.double(), k.double().repeat_interleave(2, 1)) / HEAD_DIM**0.5
    expected = scores.masked_fill(~mask[..., None], float("-inf")).logsumexp(1)
    assert out.requires_grad and not lse.requires_grad
    assert lse.dtype == torch.promote_types(dtype, torch.float32) and lse.is_contiguous()
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(lse.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(out, attention(q, k, v, record, backend=backend))


class DenseKernels:
    """A backend in the form of a kernel pair, dense and in torch, that remembers the records it got."""

    def __init__(self):
        self.records = []

    def available(self, device):
        return None

    def forward(self, q, k, v, record):
        self.records.append(ref(record))
        assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
        weights, lse = self.weights(q, k, record)
        out = torch.einsum("hqk,khe->qhe", weights, self.spread(v, q))
        return out.contiguous(), lse.T.float().contiguous()

    def backward(self, dout, q, k, v, out, lse, record, deterministic):
        """With P the weights: dV = P^T dO, dS = P * (dO V^T - rowsum(dO * O))."""
        self.records.append(ref(record))
        assert dout.is_contiguous()
        weights, _ = self.weights(q, k, record)
        delta = (dout * out).sum(-1).T[..., None]
        ds = weights * (torch.einsum("qhe,khe->hqk", dout, self.spread(v, q)) - delta) * q.shape[-1] ** -0.5
        dq = torch.einsum("hqk,khe->qhe", ds, self.spread(k, q))
        dk, dv = torch.einsum("hqk,qhe->khe", ds, q), torch.einsum("hqk,qhe->khe", weights, dout)
        return dq, *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))

    def weights(self, q, k, record):
        scores = torch.einsum("qhe,khe->hqk", q, self.spread(k, q)) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~dense_mask(record), float("-inf"))
        return scores.softmax(-1), scores.logsumexp(-1)

    def spread(self, x, q):
        return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


@pytest.fixture
def kernels(monkeypatch):
    """The dense pair in the place of the Triton backend."""
    pair = DenseKernels()
    monkeypatch.setitem(backends.LOADED, "triton", pair)
    backends._choose.cache_clear()
    yield pair
    backends._choose.cache_clear()


def run(call, seed=0, dtype=torch.float32, size=64, words=DOCUMENTS):
    """Output and the three gradients of `call(q, k, v, record)`."""
    record = record_of(words)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(record.rows, heads, size) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    leaves = [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]
    out = call(*leaves, record)
    weight = torch.randn(out.shape, generator=generator, dtype=dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


def triton(q, k, v, record):
    return attention(q, k, v, record, backend="triton")


def assert_all_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_kernel_pair_differentiates(kernels):
    assert_all_close(run(triton), run(partial(attention, backend="reference")))
    assert kernels.records[0] is kernels.records[1] and len(kernels.records) == 2


def test_the_pair_gets_contiguous_inputs(kernels):
    def strided(q, k, v, record):
        q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
        return triton(q, k, v, record).sum(1, keepdim=True).expand(-1, HEADS, -1)  # an expanded gradient

    assert len(run(strided)) == 4


def test_log_sum_exp_of_a_pair_bears_no_gradient(kernels):
    def call(q, k, v, record):
        out, lse = attention(q, k, v, record, backend="triton", return_lse=True)
        assert not lse.requires_grad and lse.dtype == torch.float32
        return out

    assert_all_close(run(call), run(partial(attention, backend="reference")))


def test_checkpointing_runs_the_forward_twice_with_the_same_record(kernels):
    def again(q, k, v, record):
        return checkpoint(triton, q, k, v, record, use_reentrant=False)

    assert_all_close(run(again), run(triton))
    assert len(kernels.records) == 5 and len(set(map(id, kernels.records[:3]))) == 1


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_compile_without_a_break(kernels, backend):
    """One graph serves every packing: the second record brings other documents and compiles nothing."""
    counter = CompileCounterWithBackend("aot_eager")

    def model(q, k, v, record):
        return attention(q * 2, k, v, record, backend=backend) + 1

    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for words in (DOCUMENTS, ["ttttcttt", "tc", "tctc", "c", "tttcc"]):
        assert_all_close(run(compiled, words=words), run(model, words=words))
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_compile_and_checkpoint_together(kernels):
    def model(q, k, v, record):
        return checkpoint(triton, q, k, v, record, use_reentrant=False)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_all_close(run(compiled), run(triton))
    torch.compiler.reset()


def test_a_record_that_died_is_made_again(kernels):
    """Operators hold tensors only: the backward pass works though nobody kept the record."""
    assert_all_close(run(lambda q, k, v, r: triton(q, k, v, record_of(DOCUMENTS))), run(triton))
    assert kernels.records[0]() is None and kernels.records[0] is not kernels.records[1]


def test_the_operator_is_sound(kernels):
    record = record_of(["tct", "c"])
    q, k, v = (x.float().requires_grad_() for x in random_qkv(record.rows))
    tensors = q, k, v, record.intervals, record.intervals, record.documents
    for name, result in torch.library.opcheck(
        operator.forward, (*tensors, record.text_rows, record.chunk_rows, "triton", False)
    ).items():
        assert result == "SUCCESS", name


def test_auto_says_once_what_it_takes_and_why(kernels, caplog):
    record = record_of(["tc"])
    q, k, v = random_qkv(record.rows)
    with caplog.at_level("INFO", logger="megatv_kernels"):
        for _ in range(3):
            attention(q, k, v, record)
    (line,) = caplog.messages
    assert line == "attention: auto takes 'sdpa' on cpu (the fastest there is for this device)"


def test_auto_takes_the_fastest_that_serves_a_gpu(kernels, monkeypatch, caplog):
    """The choice needs no GPU: a device is a name, and what a backend says of it decides."""
    refusals = {"cuda": "install nvcc", "fa4": "pip install flash-attn-4", "triton": None, "flex": None}
    monkeypatch.setattr(
        backends, "load", lambda name: SimpleNamespace(available=lambda device: refusals.get(name))
    )
    gpu = torch.device("cuda", 0)
    with caplog.at_level("INFO", logger="megatv_kernels"):
        assert backends.choose("auto", gpu, torch.bfloat16, 128, False) == "triton"
    assert caplog.messages == [
        "attention: auto takes 'triton' on cuda:0 (not 'cuda': install nvcc; not 'fa4': "
        "pip install flash-attn-4)"
    ]
    assert backends.choose("auto", gpu, torch.bfloat16, 32, False) == "flex"
    assert backends.choose("auto", gpu, torch.float32, 128, False) == "flex"
    refusals["fa4"] = None
    backends._choose.cache_clear()
    with caplog.at_level("INFO", logger="megatv_kernels"):
        assert backends.choose("auto", gpu, torch.bfloat16, 128, False) == "triton"
    assert "not 'fa4': it has not been proven on a GPU yet" in caplog.text
    monkeypatch.setattr(backends, "UNPROVEN", ())
    backends._choose.cache_clear()
    assert backends.choose("auto", gpu, torch.bfloat16, 128, False) == "fa4"
    assert backends.choose("auto", gpu, torch.bfloat16, 128, True) == "triton"  # fa4 has no fixed order
    with pytest.raises(ValueError, match="'cuda' cannot serve here: install nvcc"):
        backends.choose("cuda", gpu, torch.bfloat16, 128, False)
    with pytest.raises(ValueError, match="'triton' cannot serve here: it knows head dims 64 and 128, not 32"):
        backends.choose("triton", gpu, torch.bfloat16, 32, False)


def test_a_broken_library_is_a_reason_not_a_crash(kernels, monkeypatch):
    def load(name):
        raise ImportError("libcuda.so is missing")

    monkeypatch.setattr(backends, "load", load)
    reason = backends.why_not("triton", torch.device("cuda", 0), torch.bfloat16, 128)
    assert reason == "it cannot be imported (libcuda.so is missing)"

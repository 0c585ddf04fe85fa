"""The split-KV kernel against a dense softmax in fp64: in the interpreter, or on a GPU where there is one."""

import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if not find_spec("triton"):
    pytest.skip("triton is not installed", allow_module_level=True)
from megatv_kernels import FP8, cached_attention, decode_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or the interpreter"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@compiles
@pytest.mark.slow
def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


def dense(q, k, v, lengths, causal):
    """out and lse in fp64, one row after the other."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[2] // k.shape[2]
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=q.dtype, device=q.device)
    for b, length in enumerate(lengths.tolist()):
        for i in range(q.shape[1]):
            seen = min(length + (i + 1 if causal else q.shape[1]), k.shape[1])
            keys, values = (x[b, :seen].repeat_interleave(group, 1) for x in (k, v))
            scores = torch.einsum("he,khe->hk", q[b, i], keys) * q.shape[-1] ** -0.5
            lse[b, i] = scores.logsumexp(-1)
            out[b, i] = torch.einsum("hk,khe->he", scores.softmax(-1), values)
    return out, lse


def inputs(lengths, queries, slots, heads, kv_heads, head_dim, dtype, cached=None):
    """q and strided views of larger caches (in `cached`), whose slots beyond the rows' ends hold NaN."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE, dtype)  # noqa: E731
    batch = len(lengths)
    q = draw(batch, queries, heads, head_dim)
    k, v = (draw(2, batch, slots + 1, kv_heads, head_dim).to(cached)[1, :, :-1] for _ in "kv")
    for b, length in enumerate(lengths):
        k[b, length + queries :] = v[b, length + queries :] = torch.nan
    return q, k, v, torch.tensor(lengths, device=DEVICE)


def check(q, k, v, lengths, causal, splits):
    out, lse = decode_triton.decode_attention(q, k, v, lengths, causal=causal, splits=splits)
    expected, expected_lse = dense(q, k, v, lengths, causal)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@runs
@settings(max_examples=15)
@given(data=st.data(), causal=st.booleans(), splits=st.integers(1, 5), kv_heads=st.sampled_from([1, 2]))
def test_any_lengths_and_splits(data, causal, splits, kv_heads):
    queries, slots = data.draw(st.integers(1, 20)), 150
    lengths = data.draw(st.lists(st.integers(0, slots - queries), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    check(*inputs(lengths, queries, slots, 6, kv_heads, 64, dtype), causal, splits)


@runs
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "splits"), [(1, 3), (50, 2), (50, 1)])
def test_one_token_and_several_tiles_of_a_chunk(causal, queries, splits):
    dtype = torch.float16 if INTERPRETED else torch.bfloat16
    check(*inputs([0, 200, 60], queries, 250, 6, 2, 128, dtype), causal, splits)


@runs
@pytest.mark.parametrize("queries", [1, 50])
def test_a_cache_in_fp8(queries):
    """What e4m3 holds is exact in q's dtype: nothing else differs."""
    dtype = torch.float16 if INTERPRETED else torch.bfloat16
    check(*inputs([0, 200, 60], queries, 250, 6, 2, 64, dtype, cached=FP8), True, 2)


@runs
def test_padding_beyond_the_cache_harms_no_real_row():
    """A full row that is padded to another row's queries reads nothing beyond its slots."""
    q, k, v, lengths = inputs([64, 3], 5, 64, 4, 2, 64, torch.float32)
    check(q, k, v, lengths, True, 2)
    check(q, k, v, lengths, False, 1)


@runs
def test_empty_splits_leave_their_workspace_unread(monkeypatch):
    """Whatever stands in memory that was never written, it does not show."""
    new_empty = torch.Tensor.new_empty

    def poisoned(self, *shape, **options):
        made = new_empty(self, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    check(*inputs([0, 5], 3, 200, 4, 4, 64, torch.float32), True, 5)


@runs
def test_rows_do_not_depend_on_their_neighbours():
    q, k, v, lengths = inputs([10, 130], 4, 150, 4, 2, 64, torch.float32)
    together, _ = decode_triton.decode_attention(q, k, v, lengths, causal=True, splits=3)
    for b in range(2):
        row = slice(b, b + 1)
        alone, _ = decode_triton.decode_attention(q[row], k[row], v[row], lengths[row], causal=True, splits=3)
        assert torch.equal(alone[0], together[b])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("queries", [1, 240])
def test_one_graph_serves_every_length(queries):
    q, k, v, lengths = inputs([0, 0], queries, 7000, 32, 8, 128, torch.bfloat16)
    for cache in (k, v):
        cache.nan_to_num_(0.5)  # there will be longer rows than these
    call = lambda: cached_attention(q, k, v, lengths, causal=False)  # noqa: E731
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for new in ([0, 6000], [6500, 1]):
        lengths.copy_(torch.tensor(new))
        graph.replay()
        expected, _ = dense(q[:, :3], k, v, lengths + queries - 3, causal=False)
        torch.testing.assert_close(out[:, :3].double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("programs", [1, 16, 64, 128, 4000])
def test_splits_fill_the_gpu_once_and_stay_worth_merging(programs):
    chunk, token = (decode_triton.choose_tile(rows, torch.bfloat16) for rows in (960, 4))
    assert (chunk.rows, token.rows) == (128, 16)
    for tile, room in ((chunk, 132), (token, 264)):
        splits = decode_triton.choose_splits(programs, 6800, tile, 132)
        assert splits == 1 or (programs * splits <= room and 6800 / splits >= 4 * tile.keys)
        assert programs * (splits + 1) > room or 6800 / (splits + 1) < 4 * tile.keys


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("queries", "head_dim", "dtype", "cached", "causal"),
    [
        (240, 128, torch.bfloat16, torch.bfloat16, False),
        (240, 64, torch.float16, torch.float16, True),
        (1, 128, torch.bfloat16, torch.bfloat16, True),
        (240, 128, torch.float32, torch.float32, True),
        (240, 128, torch.bfloat16, FP8, False),
    ],
    ids=str,
)
def test_compiled_for_hopper_nothing_spills(compiled_launches, queries, head_dim, dtype, cached, causal):
    q = torch.empty(2, queries, 32, head_dim, dtype=dtype, device="meta")
    k = torch.empty(2, 6817, 8, head_dim, dtype=cached, device="meta")[:, :-1]
    lengths = torch.empty(2, dtype=torch.int64, device="meta")
    call = lambda: decode_triton.decode_attention(q, k, k, lengths, causal=causal, splits=2)  # noqa: E731
    attend, merge = compiled_launches(decode_triton, ["_attend", "_merge"], call)
    assert attend.local == merge.local == 0
    assert attend.shared <= 232_448  # what a block of an H100 or H200 may take
    assert bool(attend.instructions["HGMMA"]) == (queries == 240 and dtype != torch.float32)

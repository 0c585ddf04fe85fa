"""FlexAttention and the block lists that it shares with FlashAttention-4."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels import Document, attention, build_record, flex
from megatv_kernels.blocks import block_lists, visible_pairs
from torch.nn.attention import flex_attention as torch_flex

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

LAYOUT = {"text_rows": 20, "chunk_rows": 3, "chunks": 8}
DOCUMENTS = ["ttctctt", "tc", "ttctctt", "c", "tttcc"]


def visibility(word):
    return Document(
        np.array([word[:i].count("c") for i, x in enumerate(word) if x == "t"], np.int32),
        np.array([word[:i].count("t") for i, x in enumerate(word) if x == "c"], np.int32),
    )


def random_qkv(rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, n, 16, generator=generator, dtype=dtype) for n in (4, 2, 2)]


@settings(max_examples=60)
@given(
    words=st.lists(st.text("tc", max_size=6), max_size=3),
    chunk_rows=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    spare=st.integers(0, 3),
)
def test_block_lists_equal_the_dense_mask(words, chunk_rows, grid, spare, mask_by_definition):
    layout = {
        "text_rows": sum(w.count("t") for w in words) + spare,
        "chunk_rows": chunk_rows,
        "chunks": sum(w.count("c") for w in words) + 1,
    }
    record = build_record([visibility(w) for w in words], **layout)
    mask = mask_by_definition(words, **layout)
    rows, keys = grid
    row_blocks, key_blocks = -(-record.rows // rows), -(-record.rows // keys)
    padded = np.zeros((row_blocks * rows, key_blocks * keys), bool)
    padded[: record.rows, : record.rows] = mask
    blocks = padded.reshape(row_blocks, rows, key_blocks, keys).swapaxes(1, 2)
    np.testing.assert_array_equal(visible_pairs(record, rows, keys), blocks.sum((2, 3)))
    some, full = blocks.any((2, 3)), blocks.all((2, 3))
    by_rows, by_keys = block_lists(record, *grid)
    for lists, seen, whole in ((by_rows, some, full), (by_keys, some.T, full.T)):
        for row in range(len(seen)):
            partial_indices = lists.partial_indices[row, : lists.partial_counts[row]]
            full_indices = lists.full_indices[row, : lists.full_counts[row]]
            assert partial_indices.tolist() == np.flatnonzero(seen[row] & ~whole[row]).tolist()
            assert full_indices.tolist() == np.flatnonzero(whole[row]).tolist()


def test_block_lists_are_made_once_for_a_record_and_a_grid():
    record = build_record([visibility("tctc")], text_rows=2, chunk_rows=3, chunks=2)
    assert block_lists(record, 4, 4) is block_lists(record, 4, 4)
    assert block_lists(record, 4, 8)[0].partial_indices.shape == (4, 2)
    assert flex.block_mask(record) is flex.block_mask(record)
    assert block_lists(record.to("meta"), 4, 4)[0].full_counts.device.type == "meta"


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_flex_equals_reference(kv_heads):
    record = build_record([visibility(w) for w in DOCUMENTS], **LAYOUT)
    q, k, v = random_qkv(record.rows)
    k, v = (x[:, [0] * kv_heads] if kv_heads != 2 else x for x in (k, v))
    got = attention(q, k, v, record, backend="flex", return_lse=True)
    expected = attention(q, k, v, record, backend="reference", return_lse=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)
    assert torch.equal(attention(q, k, v, record, backend="flex"), got[0])


def test_flex_gradients_equal_reference(monkeypatch):
    """torch refuses gradients on a CPU; its uncompiled code has them all the same."""
    record = build_record([visibility(w) for w in DOCUMENTS], **LAYOUT)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        attention(*(x.requires_grad_() for x in random_qkv(record.rows)), record, backend="flex")
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    gradients = []
    for backend in ("reference", "flex"):
        inputs = [x.requires_grad_() for x in random_qkv(record.rows)]
        out = attention(*inputs, record, backend=backend)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        gradients.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_compiled_flex_trusts_the_blocks():
    """The compiled kernel skips empty blocks and asks nothing of full ones: here the lists decide."""
    record = build_record([visibility(w) for w in ("ttctcc", "tctc")], text_rows=8, chunk_rows=160, chunks=5)
    lists, _ = block_lists(record, flex.BLOCK, flex.BLOCK)
    assert lists.full_counts.sum() > 0 and (lists.full_counts + lists.partial_counts).min() < 7
    q, k, v = random_qkv(record.rows, torch.float32)
    out = torch.compile(flex.flex_attention, dynamic=False)(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        block_mask=flex.block_mask(record),
        enable_gqa=True,
        kernel_options=flex.OPTIONS,
    )
    expected = attention(q, k, v, record, backend="reference")
    torch.testing.assert_close(out[0].transpose(0, 1), expected, rtol=1e-4, atol=1e-5)

"""The FlashAttention-4 backend without the library: a stand-in that reads the same arguments.

The stand-in follows the library's contract for block sparsity (4.0.0b36): full blocks are computed without
a mask, partial blocks ask `mask_mod` for each pair, all others are skipped. It cannot show that the real
kernels compile and are right; that needs a Hopper GPU.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from megatv_kernels import Document, attention, build_record, fa4


class BlockSparseTensorsTorch(NamedTuple):
    """The fields of the library's tuple that are used, under its names."""

    mask_block_cnt: torch.Tensor
    mask_block_idx: torch.Tensor
    full_block_cnt: torch.Tensor
    full_block_idx: torch.Tensor
    block_size: tuple[int, int]


def mask_of(sparse, mask_mod, aux, rows, transpose):
    """bool [rows, rows] that a kernel with these lists would apply."""
    mask = torch.zeros(rows, rows, dtype=torch.bool)
    size, other = sparse.block_size[::-1] if transpose else sparse.block_size
    for block in range(-(-rows // size)):
        lines = torch.arange(block * size, min((block + 1) * size, rows))
        for count, index, whole in (
            (sparse.mask_block_cnt, sparse.mask_block_idx, False),
            (sparse.full_block_cnt, sparse.full_block_idx, True),
        ):
            assert count.dtype == index.dtype == torch.int32 and count.dim() == 3 and index.dim() == 4
            for entry in index[0, 0, block, : count[0, 0, block]].tolist():
                columns = torch.arange(entry * other, min((entry + 1) * other, rows))
                for line in lines.tolist():
                    q, k = (columns, [line]) if transpose else ([line], columns)
                    pairs = [mask_mod(None, None, [i], torch.tensor([j]), None, aux) for i in q for j in k]
                    cell = torch.ones(len(columns), dtype=torch.bool) if whole else torch.cat(pairs)
                    mask[(columns, line) if transpose else (line, columns)] = cell
    return mask


@pytest.fixture
def library(monkeypatch):
    """Modules under the library's names; `calls` holds the masks of each call, forward and backward."""
    calls = []

    def flash_attn_func(
        q, k, v, *, mask_mod, aux_tensors, block_sparse_tensors, block_sparse_tensors_bwd, return_lse
    ):
        rows, group = q.shape[1], q.shape[2] // k.shape[2]
        masks = [
            mask_of(sparse, mask_mod, aux_tensors, rows, transpose)
            for sparse, transpose in ((block_sparse_tensors, False), (block_sparse_tensors_bwd, True))
        ]
        calls.append(masks)
        k, v = (x.repeat_interleave(group, 2) for x in (k, v))
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~masks[0], float("-inf"))
        return torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v), scores.logsumexp(-1).float()

    def module(name, **members):
        made = ModuleType(name)
        made.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    cute = module("cutlass.cute", jit=lambda function: function)
    module("cutlass", Int32=torch.int32, cute=cute)
    module("flash_attn")
    module("flash_attn.cute", flash_attn_func=flash_attn_func)
    module("flash_attn.cute.utils", scalar_to_ssa=lambda scalar, dtype: scalar.to(dtype))
    module("flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=BlockSparseTensorsTorch)
    monkeypatch.setattr(fa4, "BLOCK", 4)
    monkeypatch.setattr(fa4, "available", lambda device: None)
    fa4._mask_mod.cache_clear()
    yield calls
    fa4._mask_mod.cache_clear()


def test_lists_bounds_and_shapes_add_up_to_attention(library, mask_by_definition):
    words = ["ttctctt", "tcc"]
    layout = {"text_rows": 9, "chunk_rows": 10, "chunks": 5}
    documents = [
        Document(
            np.array([w[:i].count("c") for i, x in enumerate(w) if x == "t"], np.int32),
            np.array([w[:i].count("t") for i, x in enumerate(w) if x == "c"], np.int32),
        )
        for w in words
    ]
    record = build_record(documents, **layout)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(record.rows, n, 64, generator=generator) for n in (4, 2, 2))
    # through attend: the public call refuses a CPU, where there is no such library
    out, lse = fa4.attend(q, k, v, record, return_lse=True, deterministic=False)
    expected = attention(q, k, v, record, backend="reference", return_lse=True)
    torch.testing.assert_close((out, lse), expected, rtol=1e-4, atol=1e-5)
    mask = torch.from_numpy(mask_by_definition(words, **layout))
    for forward, backward in library:
        assert torch.equal(forward, mask) and torch.equal(backward, mask)
    forward, backward, _ = fa4._metadata(record)
    assert forward.full_block_cnt.sum() > 0 and backward.full_block_cnt.sum() > 0
    assert fa4.attend(q, k, v, record, return_lse=False, deterministic=False)[1] is None


def test_other_machines_are_told_why(monkeypatch):
    assert fa4.available(torch.device("cpu")) == "FlashAttention-4 is used on Hopper GPUs (sm_90) only"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fa4.importlib, "util", SimpleNamespace(find_spec=lambda name: None))
    assert fa4.available(torch.device("cuda")).endswith("pip install --pre flash-attn-4==4.0.0b36")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "sm_90" in fa4.available(torch.device("cuda"))


def test_it_is_refused_by_name_where_it_cannot_serve():
    record = build_record([Document(np.array([0]), np.array([1]))], text_rows=1, chunk_rows=2, chunks=1)
    q = torch.zeros(5, 1, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="'fa4' cannot serve here: FlashAttention-4 is used on Hopper"):
        attention(q, q, q, record, backend="fa4")

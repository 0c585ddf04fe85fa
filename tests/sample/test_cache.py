"""The KV cache: ragged rows, padding, and sharing."""

import torch
from megatv_kernels import rotate

from megatv.config import ModelConfig
from megatv.model.rope import rope_table
from megatv.sample.cache import KVCache

MODEL = ModelConfig(layers=2, width=8, ffn=8, heads=4, kv_heads=2, vocab=8, tied_embeddings=False)


STILL = torch.tensor([1.0, 0.0])  # cos and sin of no rotation at all


def update(cache, layer, k, v):
    """Write without a rotation; only keys and values are of interest."""
    rope = STILL[:, None, None, None].expand(2, *k.shape[:2], 2)
    return cache.update(layer, torch.zeros(*k.shape[:2], 4, 2), k, v, rope)[1:]


def empty(rows, slots):
    return KVCache.empty(MODEL, rows, slots, device=torch.device("cpu"), dtype=torch.float32)


def test_rows_are_written_at_their_own_length():
    cache = empty(2, 6)
    cache.lengths += torch.tensor([1, 3])
    k, v = torch.randn(2, 2, 2, 2), torch.randn(2, 2, 2, 2)
    keys, values = update(cache, 1, k, v)
    assert keys.shape == values.shape == (2, 6, 2, 2)
    assert torch.equal(keys[0, 1:3], k[0]) and torch.equal(keys[1, 3:5], k[1])
    assert torch.equal(values[0, 1:3], v[0]) and torch.equal(values[1, 3:5], v[1])
    assert cache.lengths.tolist() == [1, 3]
    assert not cache.keys[0].any()


def test_padding_of_a_full_row_hurts_nobody():
    cache = empty(2, 3)
    cache.lengths += torch.tensor([3, 0])
    before = torch.randn(2, 3, 2, 2)
    cache.keys[0, :, :3] = before
    keys, _ = update(cache, 0, torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2))
    assert torch.equal(keys[0], before[0]) and keys[1].eq(1).all()


def test_keys_and_queries_are_rotated_and_values_are_not():
    cache = empty(1, 4)
    q, k, v = torch.randn(1, 3, 4, 2), torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    rope = rope_table(torch.tensor([[5, 6, 7]]), MODEL)
    turned, keys, values = cache.update(0, q, k, v, rope)
    assert torch.equal(turned, rotate(q, rope)) and torch.equal(keys[:, :3], rotate(k, rope))
    assert torch.equal(values[:, :3], v) and not torch.equal(turned, q)


def test_a_part_shares_memory():
    cache = empty(3, 4)
    part = cache.rows(slice(1, 3))
    update(part, 0, torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    part.lengths += 1
    assert cache.lengths.tolist() == [0, 1, 1]
    assert not cache.keys[0, 0].any() and cache.keys[0, 1:, 0].eq(1).all()

"""The KV cache: ragged rows, padding, and sharing."""

import torch

from megatv.config import ModelConfig
from megatv.sample.cache import KVCache

MODEL = ModelConfig(layers=2, width=8, ffn=8, heads=4, kv_heads=2, vocab=8, tied_embeddings=False)


def empty(rows, slots):
    return KVCache.empty(MODEL, rows, slots, device=torch.device("cpu"), dtype=torch.float32)


def test_rows_are_written_at_their_own_length():
    cache = empty(2, 6)
    cache.lengths += torch.tensor([1, 3])
    k, v = torch.randn(2, 2, 2, 2), torch.randn(2, 2, 2, 2)
    keys, values = cache.update(1, k, v)
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
    keys, _ = cache.update(0, torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2))
    assert torch.equal(keys[0], before[0]) and keys[1].eq(1).all()


def test_a_part_shares_memory():
    cache = empty(3, 4)
    part = cache.rows(slice(1, 3))
    part.update(0, torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    part.lengths += 1
    assert cache.lengths.tolist() == [0, 1, 1]
    assert not cache.keys[0, 0].any() and cache.keys[0, 1:, 0].eq(1).all()

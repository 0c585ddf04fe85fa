"""Sizes that a config only claims do not take the machine's memory."""

import dataclasses

import pytest
import torch

from megatv import free_memory
from megatv.free_memory import available_bytes
from megatv.sample import Request
from megatv.sample.cache import KVCache
from megatv.sample.room import require_room


def test_a_sequence_that_fits_nowhere_is_refused_before_it_is_made(make_sampler):
    sampler = make_sampler()
    config = sampler.config
    sequence = dataclasses.replace(config.sequence, context_tokens=2**24)
    model = dataclasses.replace(config.model, layers=1000, width=2**14, heads=4, kv_heads=4)
    sampler.model.config = sampler.config = dataclasses.replace(config, sequence=sequence, model=model)
    with pytest.raises(ValueError, match=r"^1 sequences of 16,77\d,\d+ tokens .* GiB of memory on cpu, and"):
        sampler.generate([Request("")])


def test_what_fits_is_made_and_what_takes_a_byte_more_is_not(make_sampler, monkeypatch):
    config = make_sampler().config
    cpu, meta = torch.device("cpu"), torch.device("meta")
    cache = KVCache.empty(config.model, 3, 100, device=meta, dtype=torch.float32)
    need = 3 * 2 * config.model.layers * 101 * config.model.kv_heads * config.model.head_dim * 4
    need += 49 * config.video.width * config.video.height * 15
    monkeypatch.setattr(free_memory, "available_bytes", lambda device: need)
    require_room(cache, cpu, config.video, 49)
    monkeypatch.setattr(free_memory, "available_bytes", lambda device: need - 1)
    with pytest.raises(ValueError, match="3 sequences of 100 tokens and 49 frames of 32 x 16 take"):
        require_room(cache, cpu, config.video, 49)


def test_memory_is_counted():
    assert 1 << 20 < available_bytes(torch.device("cpu")) < 1 << 50

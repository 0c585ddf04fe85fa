"""Sequences that grow side by side: what is forgotten leaves no trace in lengths or positions."""

import torch

from megatv.sample.context import Context


def record_positions(sampler, monkeypatch):
    """Positions [B, Q] of every text pass."""
    found, step = [], sampler.model.text_step

    def text_step(ids, positions, cache):
        found.append(positions.tolist())
        return step(ids, positions, cache)

    monkeypatch.setattr(sampler.model, "text_step", text_step)
    return found


def test_what_is_forgotten_gives_its_slots_and_positions_back(make_sampler, monkeypatch):
    sampler = make_sampler()
    found = record_positions(sampler, monkeypatch)
    context = Context.empty(sampler.model, 2, 40, torch.float32)
    with torch.inference_mode():
        context.text([[1, 2, 3, 4], [1, 2, 3, 4]])
        context.rewind(0, 2)
        context.restart(1)
        assert context.cache.lengths.tolist() == [2, 0]
        logits = context.text([[3, 4], [1, 2]])
        again = context.text([[5], [3]])
    assert found == [[[0, 1, 2, 3]] * 2, [[2, 3], [0, 1]], [[4], [2]]]
    assert context.cache.lengths.tolist() == [5, 3]
    alone = Context.empty(sampler.model, 2, 40, torch.float32)
    with torch.inference_mode():
        wanted = alone.text([[1, 2, 3, 4], [1, 2]])
        after = alone.text([[5], [3]])
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(again, after)

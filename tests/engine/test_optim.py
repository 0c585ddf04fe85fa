"""Schedule, groups and the averaged weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from megatv.config import OptimConfig
from megatv.optim import AdamW, learning_rate, parameter_groups


def test_schedule_meets_its_fixed_points() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, 105, optim) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == pytest.approx(1.0)
    assert rates[54] == pytest.approx(0.55)  # half way of the cosine
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_decay_spares_norms_biases_and_tables() -> None:
    names = {
        "embed.text.weight": (8, 4),
        "embed.position": (4, 4),
        "blocks.0.text.wq.weight": (4, 4),
        "blocks.0.video.wq.weight": (4, 4),
        "blocks.0.video.ffn_norm.weight": (4,),
        "head.text.weight": (8, 4),
        "head.text_norm.weight": (4,),
        "embed.down.stem.weight": (4, 4, 3, 3),
    }
    named = {n: torch.nn.Parameter(torch.zeros(s)) for n, s in names.items()}
    groups = parameter_groups(named.items(), OptimConfig(weight_decay=0.1, text_lr_scale=0.5))
    of = {n: g for g in groups for n, p in named.items() if any(p is q for q in g["params"])}
    decayed = {n for n, g in of.items() if g["weight_decay"]}
    assert decayed == {
        "blocks.0.text.wq.weight",
        "blocks.0.video.wq.weight",
        "head.text.weight",
        "embed.down.stem.weight",
    }
    slow = {n for n, g in of.items() if g["lr_scale"] == 0.5}
    assert slow == {
        "embed.text.weight",
        "blocks.0.text.wq.weight",
        "head.text.weight",
        "head.text_norm.weight",
    }


def test_average_follows_its_definition() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    config = OptimConfig(lr=0.1, ema=0.5)
    optimizer = AdamW(parameter_groups([("a", weight)], config), config)
    optimizer.set_lr(0.1)
    optimizer.allocate([weight])
    average = weight.detach().clone()
    for _ in range(3):
        weight.grad = torch.ones(2)
        optimizer.step()
        average = 0.5 * average + 0.5 * weight.detach()
        assert torch.allclose(optimizer.state[weight]["ema"], average)


def test_frozen_text_tower_does_not_move() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    config = OptimConfig(lr=0.1, text_lr_scale=0.0, weight_decay=0.5)
    optimizer = AdamW(parameter_groups([("blocks.0.text.wq.weight", weight)], config), config)
    optimizer.set_lr(0.1)
    optimizer.allocate([weight])
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_the_average_moves_a_little_towards_the_weights() -> None:
    """One step by hand. A decay of one half would hide the direction."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    config = OptimConfig(lr=0.1, ema=0.9, weight_decay=0.0)
    optimizer = AdamW(parameter_groups([("a", weight)], config), config)
    optimizer.allocate([weight])
    optimizer.set_lr(0.1)
    weight.grad = torch.tensor([3.0, -5.0])
    optimizer.step()  # Adam's first step is the rate times the gradient's sign
    assert torch.allclose(weight.detach(), torch.tensor([0.9, -1.9]))
    assert torch.allclose(optimizer.state[weight]["ema"], torch.tensor([0.99, -1.99]))

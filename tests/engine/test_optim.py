"""Schedule, groups and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from megatv.config import OptimConfig
from megatv.optim import MOMENTS, AdamW, ClippedAdamW, learning_rate, parameter_groups


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


def made(config: OptimConfig, values: list[float], updates: int = 0) -> tuple[AdamW, torch.nn.Parameter]:
    weight = torch.nn.Parameter(torch.tensor(values))
    optimizer = AdamW(parameter_groups([("a", weight)], config), config)
    optimizer.allocate([weight], updates)
    optimizer.set_lr(config.lr)
    return optimizer, weight


def test_the_updates_are_those_of_the_config() -> None:
    """By the definition of Adam (Kingma and Ba 2015, algorithm 1), with betas and eps unlike the defaults."""
    config = OptimConfig(lr=0.1, betas=(0.6, 0.7), eps=0.5)
    optimizer, weight = made(config, [1.0, -2.0])
    wanted, m, v = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for t, gradient in enumerate(([3.0, -0.2], [-1.0, 0.4], [0.5, 0.5]), start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        m, v = 0.6 * m + 0.4 * weight.grad, 0.7 * v + 0.3 * weight.grad**2
        wanted -= 0.1 * m / (1 - 0.6**t) / ((v / (1 - 0.7**t)).sqrt() + 0.5)
        assert torch.allclose(weight.detach(), wanted, atol=1e-6), t


def test_a_resumed_optimizer_knows_how_many_updates_there_were() -> None:
    config = OptimConfig(lr=0.1, ema=0.9)
    optimizer, weight = made(config, [1.0, -2.0])
    for gradient in ([3.0, -0.2], [-1.0, 0.4]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    again, copy = made(config, weight.tolist(), updates=2)
    for kind in (*MOMENTS, "ema"):
        again.state[copy][kind].copy_(optimizer.state[weight][kind])
    for one, parameter in ((optimizer, weight), (again, copy)):
        parameter.grad = torch.tensor([0.5, 0.5])
        one.step()
    assert torch.equal(weight, copy)


def test_a_step_that_is_judged_bad_changes_nothing_and_the_next_one_counts() -> None:
    """DeepSpeed steps once for each of its groups: the judge is asked at the first of them only."""
    optimizer, weight = made(OptimConfig(lr=0.1, ema=0.9), [1.0, -2.0])
    weight.grad = torch.ones(2)
    optimizer.step()
    state = optimizer.state[weight]
    before = {key: value.clone() for key, value in state.items()} | {"weight": weight.detach().clone()}
    asked: list[bool] = []

    def judge(verdict: bool) -> bool:
        asked.append(verdict)
        return verdict

    optimizer.judge_next(lambda: judge(False))
    for _ in range(2):
        optimizer.step()
        assert not optimizer.applied
    after = {**state, "weight": weight.detach()}
    assert asked == [False] and all(torch.equal(before[key], after[key]) for key in before)
    optimizer.judge_next(lambda: judge(True))
    assert not optimizer.applied  # until it is asked: DeepSpeed leaves steps out by itself
    for _ in range(2):
        optimizer.step()
    assert asked == [False, True] and optimizer.applied and state["step"] == before["step"] + 2


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_clipping_shrinks_long_gradients_only_and_a_bad_one_is_no_end(alone: dist.ProcessGroup) -> None:
    """The first moment shows the gradient that was used; Adam's own first step hides its length."""
    config = OptimConfig(lr=0.1, clip=2.0, betas=(0.5, 0.95))
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))]
    named = [("blocks.0.video.ffn_norm.weight", weights[0]), ("head.text_norm.weight", weights[1])]
    optimizer = ClippedAdamW(parameter_groups(named, config), config, alone, 0)
    optimizer.allocate(weights)
    optimizer.set_lr(0.1)

    def step(*gradients: list[float]) -> list[float]:
        """The moment's change is half the gradient that was used."""
        old = [optimizer.state[w]["exp_avg"].clone() for w in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.tensor(gradient)
        optimizer.step()
        new = [optimizer.state[w]["exp_avg"] for w in weights]
        return torch.cat([2 * b - a for a, b in zip(old, new, strict=True)]).tolist()

    assert step([0.6, 0.0], [0.8]) == pytest.approx([0.6, 0.0, 0.8])
    assert optimizer._global_grad_norm == pytest.approx(1.0) and not optimizer.overflow
    assert step([6.0, 0.0], [8.0]) == pytest.approx([1.2, 0.0, 1.6], rel=1e-5)
    values = [weight.detach().clone() for weight in weights]
    step([float("nan"), 0.0], [1.0])
    assert optimizer.overflow and all(torch.equal(a, b) for a, b in zip(values, weights, strict=True))
    assert step([0.0, -1.0], [0.0]) == pytest.approx([0.0, -1.0, 0.0])
    assert not optimizer.overflow

"""Which samples a skipped step is put down to: those whose own loss is bad, else all of the step."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatv.config import ObjectiveConfig
from megatv.engine import Engine, Objective
from megatv.parallel.layers import Layers
from megatv.types import LossSum


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("text", "video", "named"),
    [
        ((1.0, torch.nan, 1.0), (1.0, 1.0, 1.0), ["c", "d"]),
        ((1.0, 1.0, 1.0), (torch.inf, 1.0, torch.nan), ["a", "b", "e"]),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), ["a", "b", "c", "d", "e"]),  # the gradient alone was bad
    ],
)
def test_samples_with_a_bad_loss_are_suspects(
    alone: None, text: tuple[float, ...], video: tuple[float, ...], named: list[str]
) -> None:
    objective = Objective(SimpleNamespace(objective=ObjectiveConfig()), Layers())  # type: ignore[arg-type]
    objective.begin(torch.ones(2, dtype=torch.float64), 1.0)
    objective.ids = [("a", "b"), ("d", "c"), ("e",)]
    one = torch.tensor(1.0)
    objective.losses = [
        LossSum(torch.tensor(a), torch.tensor(b), one, one) for a, b in zip(text, video, strict=True)
    ]
    engine = SimpleNamespace(objective=objective, mesh=SimpleNamespace(world=1))
    batches = [SimpleNamespace(ids=ids) for ids in objective.ids]
    assert Engine.suspects(engine, batches) == named  # type: ignore[arg-type]

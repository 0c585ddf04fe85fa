"""All ranks of a large grid see the same groups, and a rank that does not is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from megatv.config import ParallelConfig, load_config
from megatv.parallel.mesh import Mesh
from megatv.plan import startup
from megatv.plan.startup import disagreements, start

SPORTS = load_config(Path(__file__).parents[2] / "configs/8b_sports.yaml")


def on(tp, pp, zero=1):
    return replace(SPORTS, parallel=ParallelConfig(tp=tp, pp=pp, zero=zero))


@pytest.mark.parametrize("grid", [(1, 1, 3), (8, 1), (4, 4)])
def test_256_ranks_agree_on_every_group(grid):
    starts = [start(on(*grid), 256, rank, model=False) for rank in range(256)]
    assert list(disagreements(starts)) == []
    for name in starts[0].groups:
        groups = {one.groups[name] for one in starts}
        assert sorted(rank for ranks in groups for rank in ranks) == list(range(256)), name
    sizes = {name: len(ranks) for name, ranks in starts[0].groups.items()}
    assert sizes["tp_group"] == grid[0] and sizes["model_group"] == grid[0] * grid[1]


def test_a_rank_that_makes_a_group_of_its_own_is_named(monkeypatch):
    class Odd(Mesh):
        def __init__(self, config):
            super().__init__(config)
            if self.rank == 3:
                dist.new_group([2, 3])

    monkeypatch.setattr(startup, "Mesh", Odd)
    found = list(disagreements([start(on(2, 1), 4, rank, model=False) for rank in range(4)]))
    assert found == ["rank 3 makes other process groups than rank 0, or the same in another order"]


def test_ranks_that_see_other_members_are_named():
    starts = [start(on(2, 1), 4, rank, model=False) for rank in range(4)]
    assert starts[0].groups["tp_group"] == (0, 1)
    starts[0] = replace(starts[0], groups={**starts[0].groups, "tp_group": (0, 2)})
    found = list(disagreements(starts))
    assert "rank 0 has ranks (0, 2) in its tp_group, rank 2 has (2, 3)" in found
    assert "rank 1 has ranks (0, 1) in its tp_group, rank 0 has (0, 2)" in found


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"12 processes cannot form a grid of parallel\.tp 8"):
        start(on(8, 1), 12, 0, model=False)

"""The process grid as one tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatv.config import ParallelConfig, load_config
from megatv.parallel.mesh import Mesh, grid, rehearsal


def test_tensor_siblings_are_neighbours_and_stages_far_apart() -> None:
    ranks = grid(16, ParallelConfig(tp=2, pp=2, cp=2))
    assert ranks[0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert ranks[1].tolist() == [[[8, 9], [10, 11]], [[12, 13], [14, 15]]]


@given(*[st.integers(1, 4)] * 4)
def test_every_rank_has_one_place(tp: int, pp: int, dp: int, cp: int) -> None:
    ranks = grid(tp * pp * dp * cp, ParallelConfig(tp=tp, pp=pp, cp=cp))
    assert ranks.shape == (pp, dp, cp, tp)
    assert sorted(ranks.flatten().tolist()) == list(range(tp * pp * dp * cp))


def test_world_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6 processes .* parallel.tp 2 x parallel.pp 2.*multiple of 4"):
        grid(6, ParallelConfig(tp=2, pp=2))
    with pytest.raises(ValueError, match=r"parallel.tp 1 x parallel.pp 1 x parallel.cp 4: .*multiple of 4"):
        grid(6, ParallelConfig(cp=4))
    with pytest.raises(
        ValueError, match=r"parallel.dp is 4, .* make dp 3: start 8 processes or set parallel.dp"
    ):
        grid(6, ParallelConfig(tp=2, dp=4))


def test_a_rank_of_a_large_grid_can_be_rehearsed() -> None:
    path = Path(__file__).parents[2] / "configs/8b_sports.yaml"
    with rehearsal(256, 137):
        mesh = Mesh(load_config(path, ["parallel={tp: 4, pp: 4}"]).parallel)
        assert (mesh.pp_rank, mesh.dp_rank, mesh.tp_rank) == (2, 2, 1)
        assert mesh.tp_ranks == [136, 137, 138, 139] and len(mesh.replica_ranks) == 16
        with pytest.raises(ValueError, match="cannot be rehearsed inside a process group"), rehearsal(2, 0):
            pass
    assert not dist.is_initialized()

"""The process grid as one tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatv.config import load_config
from megatv.parallel.mesh import Mesh, grid, rehearsal


def test_tensor_siblings_are_neighbours_and_stages_far_apart() -> None:
    ranks = grid(8, tp=2, pp=2)
    assert ranks.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_every_rank_has_one_place(tp: int, pp: int, dp: int) -> None:
    ranks = grid(tp * pp * dp, tp, pp)
    assert ranks.shape == (pp, dp, tp)
    assert sorted(ranks.flatten().tolist()) == list(range(tp * pp * dp))


def test_world_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6 processes .* parallel.tp 2 x parallel.pp 2.*multiple of 4"):
        grid(6, tp=2, pp=2)


def test_a_rank_of_a_large_grid_can_be_rehearsed() -> None:
    path = Path(__file__).parents[2] / "configs/8b_sports.yaml"
    with rehearsal(256, 137):
        mesh = Mesh(load_config(path, ["parallel.tp=4", "parallel.pp=4"]))
        assert (mesh.pp_rank, mesh.dp_rank, mesh.tp_rank) == (2, 2, 1)
        assert mesh.tp_ranks == [136, 137, 138, 139] and len(mesh.dp_ranks) == 16
        with pytest.raises(ValueError, match="cannot be rehearsed inside a process group"), rehearsal(2, 0):
            pass
    assert not dist.is_initialized()

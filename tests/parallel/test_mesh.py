"""The process grid as one tensor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.parallel.mesh import grid


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

"""Permutations by function: every value once, never changing, and as even as shuffling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.data.permutation import permuted, permuted_each


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63), epoch=st.integers(0, 2**40))
def test_every_value_comes_once(n, seed, epoch):
    order = permuted(np.arange(n), n, seed, epoch)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))


@given(n=st.integers(1, 2**40), data=st.data())
def test_any_element_alone_equals_itself_among_others(n, data):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)))
    together = permuted(places, n, 7)
    assert ((together >= 0) & (together < n)).all()
    assert together.tolist() == [int(permuted(np.array(place), n, 7)) for place in places]
    assert permuted_each([(int(p), n, (7,)) for p in places]) == together.tolist()


def test_several_permutations_at_once():
    asked = [(i % 5, 5 + i % 3, (i % 2, 9)) for i in range(40)]
    assert permuted_each(asked) == [int(permuted(np.array(place), n, *key)) for place, n, key in asked]


@pytest.mark.parametrize("n", [5, 20, 64])
def test_every_place_is_as_likely_as_every_other(n):
    """Chi-square of value against place over 4,000 keys: (n - 1)^2 degrees of freedom, within 6 sigma."""
    counts = np.zeros((n, n))
    for key in range(4000):
        counts[np.arange(n), permuted(np.arange(n), n, key)] += 1
    expected, freedom = 4000 / n, (n - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_part():
    """The distance between two neighbours is that of two random places: n / 3 on average."""
    n = 100_000
    gaps = np.abs(np.diff(permuted(np.arange(n), n, 3)))
    assert abs(gaps.mean() / n - 1 / 3) < 0.005 and (gaps == 1).sum() < 20


def test_keys_differ_and_old_runs_resume_in_their_order():
    assert (
        len({tuple(permuted(np.arange(50), 50, seed, epoch)) for seed in range(5) for epoch in range(5)})
        == 25
    )
    assert permuted(np.arange(10), 10, 1, 2).tolist() == [6, 8, 9, 5, 3, 4, 2, 0, 7, 1]

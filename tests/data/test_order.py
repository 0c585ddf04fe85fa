"""A window order is a permutation of its seed and epoch that never reads more shards at a time than asked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatv.data.order import window_order


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    window=st.integers(1, 25),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_every_example_comes_once_inside_its_window(sizes, window, seed, epoch):
    sizes = np.array(sizes)
    order = window_order(seed, epoch, sizes, window)
    assert sorted(order) == list(range(sizes.sum()))
    assert np.array_equal(order, window_order(seed, epoch, sizes, window))
    shards = np.repeat(np.arange(len(sizes)), sizes)[order]
    opened: list[set[int]] = [set()]
    for shard in shards:
        if not any(shard in group for group in opened):
            if len(opened[-1]) == window:
                opened.append(set())
            opened[-1].add(shard)
        assert shard in opened[-1]


def test_epochs_and_seeds_differ_and_examples_mix():
    sizes = np.full(64, 10)
    orders = {tuple(window_order(seed, epoch, sizes, 16)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    first = window_order(0, 0, sizes, 16)[:160] // 10
    assert len(set(first)) == 16 and len(set(first[:40])) > 10


def test_old_runs_resume_in_their_order():
    assert window_order(7, 3, np.array([2, 1, 3, 2]), 2).tolist() == [3, 6, 5, 7, 4, 0, 1, 2]

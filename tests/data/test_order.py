"""Rows are functions of (seed, number): every example once an epoch, within its window, within its room."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.config import Config, config_from_dict
from megatv.data.balance import text_rows
from megatv.data.order import BLOCK, Place, RowOrder

BYTES_PER_TOKEN = 2.0


def make_config(window=0, slots=2, seed=0, **sequence) -> Config:
    return config_from_dict(
        {
            "run": {"dir": "unused", "steps": 1, "seed": seed},
            "video": {"width": 16, "height": 16, "groups": 1},
            "codec": {"kind": "dct"},
            "tokenizer": {"path": "toy_world"},
            "data": {"train": "unused", "shuffle_shards": window},
            "sequence": {"mode": "tv2tv", "context_tokens": slots * 126, "examples_per_row": slots}
            | sequence,
            "model": dict(layers=1, width=8, ffn=8, heads=1, kv_heads=1, vocab=512, tied_embeddings=False),
            "batch": {"examples": slots},
            "checkpoint": {"every": 1},
        }
    )


@st.composite
def sets(draw):
    sizes = np.array(draw(st.lists(st.integers(1, 9), min_size=1, max_size=20)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = np.stack([rng.integers(1, 14, sizes.sum()), rng.integers(0, 300, sizes.sum())], 1).astype(
        np.int32
    )
    return lengths, sizes


def epoch_of(order, epoch):
    return order.rows(range(epoch * len(order), (epoch + 1) * len(order)))


@settings(deadline=None)
@given(made=sets(), window=st.integers(0, 25), slots=st.integers(1, 3), epoch=st.integers(0, 1000))
def test_every_example_comes_once_inside_its_window_and_fits(made, window, slots, epoch):
    lengths, sizes = made
    config = make_config(window, slots)
    rows = epoch_of(RowOrder(lengths, sizes, config, BYTES_PER_TOKEN), epoch)
    places = [place for row in rows for place in row]
    assert sorted(place.index for place in places) == list(range(len(lengths)))
    assert {place.epoch for place in places} == {epoch}
    for row in rows:
        index = [place.index for place in row]
        assert lengths[index, 0].sum() <= config.chunks_per_row
        assert sum(place.text_rows for place in row) <= config.text_rows
        need = np.minimum(text_rows(*lengths[index].T, BYTES_PER_TOKEN), config.text_rows_per_example)
        assert (np.array([place.text_rows for place in row]) >= np.floor(need)).all()
    shards = np.repeat(np.arange(len(sizes)), sizes)[[place.index for place in places]]
    first = np.array([np.flatnonzero(shards == shard)[0] for shard in range(len(sizes))])
    last = np.array([np.flatnonzero(shards == shard)[-1] for shard in range(len(sizes))])
    being_read = [int(((first <= at) & (at <= last)).sum()) for at in range(len(places))]
    assert max(being_read) <= (window or len(sizes))


@given(made=sets(), data=st.data())
def test_any_row_alone_equals_itself_among_others(made, data):
    lengths, sizes = made
    order = RowOrder(lengths, sizes, make_config(window=3), BYTES_PER_TOKEN)
    numbers = data.draw(st.lists(st.integers(0, 5 * len(order)), max_size=8))
    assert order.rows(numbers) == [order.rows([number])[0] for number in numbers]


def test_without_lengths_all_are_of_full_length():
    order = RowOrder(None, np.array([4, 5]), make_config(slots=2), BYTES_PER_TOKEN)
    assert [len(row) for row in sorted(epoch_of(order, 3), key=len)] == [1, 2, 2, 2, 2]


def test_epochs_and_seeds_differ_and_all_examples_meet():
    lengths = np.full((60, 2), 13, np.int32)
    order, met = RowOrder(lengths, np.array([60]), make_config(), BYTES_PER_TOKEN), collections.Counter()
    for epoch in range(400):
        for row in epoch_of(order, epoch):
            met[frozenset(place.index for place in row)] += 1
    assert len(met) > 0.99 * 60 * 59 / 2 and max(met.values()) < 25  # 6.8 times each on average
    seeds = {
        tuple(
            p.index
            for row in epoch_of(RowOrder(None, np.array([60]), make_config(seed=s), 2.0), 0)
            for p in row
        )
        for s in range(5)
    }
    assert len(seeds) == 5


def test_examples_of_a_window_mix():
    order = RowOrder(None, np.full(64, 10), make_config(window=16, slots=1), BYTES_PER_TOKEN)
    first = [row[0].index // 10 for row in order.rows(range(160))]
    assert len(set(first)) == 16 and len(set(first[:40])) > 10
    assert [row[0].index // 10 for row in order.rows(range(640, 800))] != first


@given(made=sets(), window=st.integers(0, 5), data=st.data())
def test_substitutes_come_from_the_window_and_fit(made, window, data):
    lengths, sizes = made
    config = make_config(window)
    order = RowOrder(lengths, sizes, config, BYTES_PER_TOKEN)
    index = data.draw(st.integers(0, len(lengths) - 1))
    found = list(order.substitutes(index))
    assert found[0] == index and len(set(found)) == len(found)
    assert (lengths[found, 0] <= lengths[index, 0]).all()
    twins = np.flatnonzero((lengths == lengths[index]).all(1))
    if not window:
        assert set(twins) <= set(found)


def test_a_detailed_caption_takes_a_whole_share():
    lengths = np.array([[3, 10]] * 8, np.int32)
    config = make_config(mode="think2v", think2v="detailed_caption")
    assert len(RowOrder(lengths, np.array([8]), config, BYTES_PER_TOKEN)) == 4
    assert len(RowOrder(lengths, np.array([8]), make_config(), BYTES_PER_TOKEN)) == 1


@pytest.mark.parametrize("damaged", [[0, 10], [14, 10], [3, -1]])
def test_impossible_lengths_are_refused(damaged):
    with pytest.raises(ValueError, match=r"lengths\.npy is damaged"):
        RowOrder(np.array([[3, 10], damaged], np.int32), np.array([2]), make_config(), BYTES_PER_TOKEN)


def test_blocks_of_a_large_set_join(monkeypatch):
    assert BLOCK == 1 << 20
    rng = np.random.default_rng(0)
    lengths = np.stack([rng.integers(1, 14, 1000), rng.integers(0, 300, 1000)], 1).astype(np.int32)
    whole = RowOrder(lengths, np.full(100, 10), make_config(window=7), BYTES_PER_TOKEN)
    monkeypatch.setattr("megatv.data.order.BLOCK", 64)
    blocks = RowOrder(lengths, np.full(100, 10), make_config(window=7), BYTES_PER_TOKEN)
    assert epoch_of(whole, 1) == epoch_of(blocks, 1)


def test_old_runs_resume_in_their_order():
    lengths = np.array([[13, 40], [5, 20], [9, 90], [13, 10], [4, 0], [6, 8]], np.int32)
    rows = epoch_of(RowOrder(lengths, np.array([2, 1, 3]), make_config(2, 1, seed=7), BYTES_PER_TOKEN), 3)
    assert [[place.index for place in row] for row in rows] == [[2], [4], [3], [5, 1], [0]]
    assert rows[0] == [Place(2, 3, 100)] and rows[3] == [Place(5, 3, 50), Place(1, 3, 50)]


def test_as_many_examples_as_shares_have_a_whole_share_each():
    """Though their needs differ; only where more of them share a row, each gets by its need."""
    share = make_config(slots=2).text_rows_per_example
    two = np.array([[13, 300], [13, 0]], np.int32)
    (row,) = epoch_of(RowOrder(two, np.array([2]), make_config(slots=2), BYTES_PER_TOKEN), 0)
    assert [place.text_rows for place in row] == [share] * 2
    many = np.array([[4, 300], [4, 0], [4, 0], [4, 0], [4, 0]], np.int32)
    (row,) = epoch_of(RowOrder(many, np.array([5]), make_config(slots=2), BYTES_PER_TOKEN), 0)
    assert len({place.text_rows for place in row}) == 2


def test_windows_come_in_another_order_in_every_epoch():
    order = RowOrder(None, np.full(24, 5), make_config(window=2, slots=1), BYTES_PER_TOKEN)
    visited = set()
    for epoch in range(6):
        window = [frozenset(row[0].index // 5 for row in rows) for rows in by_tens(epoch_of(order, epoch))]
        assert all(len(shards) == 2 for shards in window)
        visited.add(tuple(window))
    assert len(visited) == 6 and len({frozenset(order) for order in visited}) == 1  # the windows are the same


def by_tens(rows):
    return [rows[at : at + 10] for at in range(0, len(rows), 10)]


def test_shards_of_a_window_are_drawn_by_the_seed():
    def windows(seed):
        order = RowOrder(None, np.full(24, 5), make_config(window=2, slots=1, seed=seed), BYTES_PER_TOKEN)
        return {frozenset(row[0].index // 5 for row in rows) for rows in by_tens(epoch_of(order, 0))}

    assert len({frozenset(windows(seed)) for seed in range(4)}) == 4


def test_substitutes_do_not_leave_the_window():
    sizes = np.full(12, 3)
    order = RowOrder(np.full((36, 2), 13, np.int32), sizes, make_config(window=3, slots=1), BYTES_PER_TOKEN)
    window_of = {row[0].index: at // 9 for at, row in enumerate(epoch_of(order, 0))}
    for index in range(36):
        found = list(order.substitutes(index))
        assert sorted(found) == sorted(i for i in window_of if window_of[i] == window_of[index])


def test_examples_of_two_kinds_meet_other_partners_in_every_epoch():
    """Equally many long and short ones: drawn by one permutation, the same two would always meet."""
    lengths = np.array([[12, 0]] * 20 + [[1, 0]] * 20, np.int32)
    order = RowOrder(lengths, np.array([40]), make_config(slots=1), BYTES_PER_TOKEN)
    partners = collections.defaultdict(set)
    for epoch in range(12):
        for long, short in (sorted(place.index for place in row) for row in epoch_of(order, epoch)):
            assert long < 20 <= short
            partners[long].add(short)
    assert min(map(len, partners.values())) > 3

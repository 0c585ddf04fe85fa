"""Dealing keeps every item, gives all hands the same number, and is never worse than dealing in turn."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from megatv_kernels import Document, build_record

from megatv.data.balance import attention_pairs, deal, example_costs, largest_sum


def in_turn(items, hands):
    return [list(range(hand, items, hands)) for hand in range(hands)]


@st.composite
def tables(draw):
    hands, each = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    costs = draw(st.lists(st.integers(1, 1000), min_size=hands * each, max_size=hands * each))
    return np.array(costs, np.float64), hands


@given(tables())
def test_nothing_is_lost_and_nothing_gets_worse(table):
    costs, hands = table
    plain = in_turn(len(costs), hands)
    dealt = deal(costs, plain)
    assert sorted(item for hand in dealt for item in hand) == list(range(len(costs)))
    assert {len(hand) for hand in dealt} == {len(costs) // hands}
    assert largest_sum(costs, dealt) <= largest_sum(costs, plain)
    assert deal(costs, plain) == dealt


def test_equal_costs_are_dealt_in_turn():
    assert deal(np.full(12, 5.0), in_turn(12, 3)) == in_turn(12, 3)


def test_what_is_balanced():
    """Two long and two short ones; and clips of 1 to 26 latents, where dealing in turn is 13 % off."""
    assert sorted(map(sorted, deal(np.array([9.0, 1, 9, 1]), in_turn(4, 2)))) == [[0, 1], [2, 3]]
    chunks = np.random.default_rng(0).integers(1, 27, 512)
    costs = example_costs(np.stack([chunks, np.full(512, 400)], 1), 240, 576)
    plain = in_turn(512, 8)
    mean = costs.sum() / 8
    assert largest_sum(costs, plain) / mean > 1.1
    assert largest_sum(costs, deal(costs, plain)) / mean < 1.001


def test_hands_hold_alike_items_at_the_same_time():
    costs = np.random.default_rng(1).permutation(np.arange(1.0, 33.0))
    rounds = np.array([costs[hand] for hand in deal(costs, in_turn(32, 4))]).T
    assert (rounds.max(1) - rounds.min(1) <= 3).all()


@given(chunks=st.integers(1, 8), between=st.integers(1, 6), tokens=st.sampled_from([1, 4, 6]))
def test_pairs_are_those_of_the_record(chunks, between, tokens):
    """Exact up to where the text lies inside its stretch: half a stretch for every token or chunk."""
    text = between * (chunks + 1)
    document = Document(
        np.repeat(np.arange(chunks + 1, dtype=np.int32), between),
        (np.arange(chunks, dtype=np.int32) + 1) * between,
    )
    record = build_record([document], text_rows=text, chunk_rows=tokens, chunks=chunks)
    estimate = attention_pairs(np.array([chunks]), np.array([text]), tokens)[0]
    assert abs(record.live_pairs() - estimate) <= 2 * tokens * text


def test_text_beyond_the_budget_costs_nothing():
    costs = example_costs(np.array([[26, 4 * 522], [26, 10**6], [25, 0]]), 240, 576)
    assert costs[0] == costs[1] > costs[2]

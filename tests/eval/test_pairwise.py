import numpy as np

from megatv.eval.pairwise import win_tie_lose


def test_wins_ties_and_losses_by_the_band():
    ours = np.array([31.0, 30.0, 30.5, 29.0, np.nan])
    theirs = np.array([29.0, 29.0, 30.5, 31.0, 10.0])
    found = win_tie_lose(ours, theirs, 1.0)
    assert [found[name]["mean"] for name in ("win", "tie", "lose")] == [0.25, 0.5, 0.25]
    assert {row["n"] for row in found.values()} == {4}
    assert found["win"]["low"] < 0.25 < found["win"]["high"]
    mirrored = win_tie_lose(theirs, ours, 1.0)
    assert mirrored["win"] == found["lose"] and mirrored["tie"] == found["tie"]


def test_without_pairs_nothing_is_claimed():
    found = win_tie_lose(np.array([np.nan]), np.array([1.0]), 1.0)
    assert all(row["mean"] is None and row["n"] == 0 for row in found.values())

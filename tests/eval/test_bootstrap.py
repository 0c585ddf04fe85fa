import numpy as np
import pytest

from megatv.eval.bootstrap import estimate


def test_the_interval_of_a_mean_is_the_normal_one():
    """For many starts the bootstrap of a mean is value +- 1.96 s / sqrt(n)."""
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = estimate(lambda rows: values[rows].mean(), 400)
    half = 1.96 * values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.03)


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        values = rng.exponential(1.0, 60)
        found = estimate(lambda rows, v=values: v[rows].mean(), 60, draws=100, seed=trial)
        hits += found["low"] <= 1 <= found["high"]
    assert 86 <= hits <= 99  # 95 expected; the tail of an exponential costs a little


def test_pairing_by_start_takes_out_what_the_starts_share():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 50)
    ours, theirs = hard + 1 + rng.normal(0, 0.1, 50), hard
    found = estimate(lambda rows: ours[rows].mean() - theirs[rows].mean(), 50)
    assert 0.9 < found["low"] < 1 < found["high"] < 1.1


def test_the_basic_interval_leans_the_other_way():
    """A resample spreads too little on average: its quantiles lie too low and their mirror corrects it."""
    values = np.random.default_rng(0).normal(0, 1, 10)
    quantiles, basic = (estimate(lambda rows: values[rows].var(), 10, basic=b) for b in (False, True))
    assert quantiles["value"] == basic["value"]
    assert basic["low"] == pytest.approx(2 * basic["value"] - quantiles["high"])
    assert basic["high"] == pytest.approx(2 * basic["value"] - quantiles["low"])


def test_one_start_says_nothing_of_others():
    assert estimate(lambda rows: 3.0, 1) == {"value": 3.0, "low": None, "high": None}


def test_nothing_to_measure_is_none():
    nothing = {"value": None, "low": None, "high": None}
    assert estimate(lambda rows: float("nan"), 5) == nothing

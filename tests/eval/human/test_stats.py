"""Agreement and intervals against published and exact values."""

import math
import subprocess
import sys

import numpy as np
import pytest

from megatv.eval.human import stats
from megatv.eval.human.stats import krippendorff_alpha, mean_interval

# Data of four observers and twelve units, one without a pair: Krippendorff (2011), section C.
_ = math.nan
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


def test_alpha_is_the_published_one():
    assert krippendorff_alpha(PUBLISHED) == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_agreement_chance_and_contradiction():
    answers = np.array([0.0, 1, 2, 1, 0, 2])
    assert krippendorff_alpha(np.stack([answers, answers])) == 1
    assert krippendorff_alpha(np.stack([answers, 2 - answers])) < -0.5
    random = np.random.default_rng(0).integers(-2, 3, (3, 4000)).astype(float)
    assert abs(krippendorff_alpha(random)) < 0.03


def test_alpha_is_unknown_where_nobody_could_disagree():
    assert math.isnan(krippendorff_alpha(np.array([[1.0, math.nan], [math.nan, 2.0]])))
    assert math.isnan(krippendorff_alpha(np.ones((2, 3))))


def test_interval_of_independent_answers_is_the_normal_one():
    values = (np.arange(400) % 4 == 0).astype(float)
    found = mean_interval(values, np.arange(400), seed=0)
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found["mean"] == 0.25 and found["n"] == 400
    assert found["low"] == pytest.approx(0.25 - spread, abs=0.004)
    assert found["high"] == pytest.approx(0.25 + spread, abs=0.004)


def test_answers_about_one_item_do_not_count_as_many_items():
    values = (np.arange(100) % 2).astype(float)
    alone = mean_interval(values, np.arange(100), seed=0)
    repeated = mean_interval(np.repeat(values, 9), np.repeat(np.arange(100), 9), seed=0)
    assert repeated["high"] - repeated["low"] == pytest.approx(alone["high"] - alone["low"], rel=1e-6)
    assert mean_interval(np.array([]), np.array([]), 0)["n"] == 0


@pytest.mark.parametrize("answers", [[1.0], [1.0, 0.0, 0.0, 1.0]])
def test_one_item_gives_no_interval(answers):
    found = mean_interval(np.array(answers), np.zeros(len(answers), int), seed=0)
    assert found["mean"] == np.mean(answers) and found["n"] == len(answers)
    assert math.isnan(found["low"]) and math.isnan(found["high"])
    two = mean_interval(np.array([*answers, 0.25]), np.array([*[0] * len(answers), 1]), seed=0)
    assert two["low"] < two["mean"] < two["high"]


def test_resamples_in_blocks_are_those_drawn_at_once(monkeypatch):
    random = np.random.default_rng(1)
    values, items = random.integers(-2, 3, 90).astype(float), np.arange(90) % 31
    monkeypatch.setattr(stats, "BLOCK_NUMBERS", 1 << 40)
    at_once = mean_interval(values, items, 5)
    monkeypatch.setattr(stats, "BLOCK_NUMBERS", 1000)
    assert mean_interval(values, items, 5) == at_once


def test_many_items_take_bounded_memory(peak_source):
    program = peak_source + (
        "import numpy as np; from megatv.eval.human.stats import mean_interval\n"
        "before = peak(); mean_interval(np.ones(4000), np.arange(4000), 0); print(peak() - before >> 10)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 150  # MiB; all resamples at once take 305

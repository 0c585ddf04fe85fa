"""Keyed randomness: every part of the key matters, nothing else does."""

import numpy as np
import pytest

from megatv.data.noise import Draws

LOGIT_NORMAL = {"mean": 0.0, "std": 1.4}
SHAPE = (16, 4, 6)


def chunk(draws, index=0, shape=SHAPE):
    return draws.chunk(index, shape, **LOGIT_NORMAL)


def test_same_key_same_draws_in_any_order():
    forwards = [chunk(Draws(1, 2, "clip"), i) for i in range(5)]
    one = Draws(1, 2, "clip")
    one.text(7)
    backwards = [chunk(one, i) for i in reversed(range(5))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert (a.t, a.flip) == (b.t, b.flip)
        np.testing.assert_array_equal(a.epsilon, b.epsilon)


@pytest.mark.parametrize(
    ("other", "index"),
    [
        (Draws(0, 2, "clip"), 3),
        (Draws(1, 3, "clip"), 3),
        (Draws(1, 2, "clip_"), 3),
        (Draws(1, 2, "clip"), 4),
        (Draws(12, 2, "clip"), 3),
        (Draws(1, 22, "clip"), 3),
    ],
)
def test_every_part_of_the_key_matters(other, index):
    a, b = chunk(Draws(1, 2, "clip"), 3), chunk(other, index)
    assert a.t != b.t and a.flip != b.flip
    assert abs(np.corrcoef(a.epsilon.ravel(), b.epsilon.ravel())[0, 1]) < 0.1  # 1536 values: sigma 0.026


def test_text_draws_are_of_their_own_and_each_of_its_index():
    draws = Draws(0, 0, "clip")
    whole, each = draws.text(4)
    longer_whole, longer = draws.text(9)
    assert whole == longer_whole
    np.testing.assert_array_equal(each, longer[:4])
    assert chunk(draws, 0).flip not in {whole, *each}


def test_times_are_logit_normal_with_the_papers_sigma():
    """Footnote 3 of TV2TV: mu 0, sigma 1.4; the logit of t must be normal with these."""
    t = np.array([chunk(Draws(0, 0, f"clip{i}"), i % 13, (1,)).t for i in range(4000)], np.float64)
    assert t.min() > 0 and t.max() < 1
    logit = np.log(t / (1 - t))
    assert abs(logit.mean()) < 4 * 1.4 / 4000**0.5
    assert logit.std() == pytest.approx(1.4, abs=4 * 1.4 / 8000**0.5)
    within = np.mean(abs(logit) < 1.4)
    assert within == pytest.approx(0.6827, abs=0.03)


def test_mean_and_std_shift_and_scale_the_logit():
    base, moved = (Draws(0, 0, "a").chunk(0, (1,), mean=m, std=s).t for m, s in ((0, 1), (0.5, 2)))
    assert np.log(moved / (1 - moved)) == pytest.approx(0.5 + 2 * np.log(base / (1 - base)), abs=1e-4)


def test_epsilon_is_standard_normal_and_flips_are_uniform():
    draws = [chunk(Draws(0, 0, "clip"), i) for i in range(40)]
    epsilon = np.concatenate([d.epsilon.ravel() for d in draws])
    assert epsilon.dtype == np.float32 and draws[0].epsilon.shape == SHAPE
    assert abs(epsilon.mean()) < 4 / len(epsilon) ** 0.5
    assert epsilon.std() == pytest.approx(1, abs=0.02)
    flips = np.array([Draws(0, 0, f"clip{i}").chunk(0, (1,), **LOGIT_NORMAL).flip for i in range(2000)])
    assert np.mean(flips < 0.2) == pytest.approx(0.2, abs=0.036)  # 4 sigma


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Draws(1, 12, "clip"), Draws(11, 2, "clip")),
        (Draws(1, 2, "3clip"), Draws(1, 23, "clip")),
        (Draws(1, 2, "3"), Draws(12, 3, "")),
    ],
)
def test_parts_of_the_key_do_not_run_together(one, other):
    assert chunk(one).t != chunk(other).t

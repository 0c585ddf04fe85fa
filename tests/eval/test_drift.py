import numpy as np
import pytest

from megatv.eval.drift import Moments, by_second, moments


def test_seconds_are_means_and_the_last_takes_the_rest():
    values = np.arange(10.0)[None]
    assert by_second(values, np.arange(10) / 4, 2).tolist() == [[1.5, 6.5]]
    assert by_second(values, np.arange(10) / 4, 1).tolist() == [[4.5]]


def test_a_known_drift_is_found_in_the_unit_of_the_values():
    """Second 0 is the data; second 1 is 3 brighter in all channels; second 2 has twice the spread."""
    rng = np.random.default_rng(0)
    data = rng.normal(50, 4, (40, 16, 8, 8, 2))
    drifting = np.concatenate([data, data + 3, 50 + 2 * (data - 50)], axis=1)
    at = np.arange(48) / 16
    reference = moments(data, at[:16], 1)
    found = moments(drifting, at, 3).distance(reference)
    assert found == pytest.approx([0, 3, 4], abs=0.05)


def test_the_distance_is_the_root_mean_square_over_channels():
    data = Moments(np.zeros((1, 1, 2)), np.ones((1, 1, 2)))
    moved = Moments(np.array([[[6.0, 0.0]]]), np.array([[[37.0, 1.0]]]))
    assert moved.distance(data) == pytest.approx([6 / np.sqrt(2)])


def test_videos_that_ended_early_do_not_count():
    one = Moments(np.zeros((1, 3, 2)), np.ones((1, 3, 2)))
    two = Moments(*(np.concatenate([part, np.full_like(part, np.nan)]) for part in (one.mean, one.square)))
    assert two.distance(one) == pytest.approx([0, 0, 0])


def test_pictures_do_not_overflow_their_bytes():
    white = np.full((1, 16, 4, 4, 3), 250, np.uint8)
    found = moments(white, np.arange(16) / 16, 1)
    assert found.mean == pytest.approx(np.full((1, 1, 3), 250)) and found.square == pytest.approx(250**2)


def test_all_seconds_of_the_data_are_one_distribution():
    """Its seconds differ here: means 0 and 2 with spread 1 are together mean 1 with spread sqrt 2."""
    data = Moments(np.array([[[0.0], [2.0]]]), np.array([[[1.0], [5.0]]]))
    video = Moments(np.array([[[1.0], [4.0]]]), np.array([[[3.0], [16.0]]]))
    assert video.distance(data) == pytest.approx([0, np.sqrt(3**2 + 2)])

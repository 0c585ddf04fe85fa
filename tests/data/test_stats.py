"""Latent statistics: two sets per channel, streamed, saved, applied to numpy and torch alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.data.stats import LatentStats, StatsAccumulator


def latents_of(seed: int, n: int = 26) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.1, 30, (16, 1, 1)), rng.uniform(-50, 50, (16, 1, 1))
    latents = rng.standard_normal((n, 16, 2, 3)) * scale + shift
    latents[::13] *= 2
    return latents.astype(np.float32)


def stats_of(*videos: np.ndarray) -> LatentStats:
    accumulator = StatsAccumulator()
    for video in videos:
        accumulator.add(video)
    return accumulator.finish()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 25), max_size=4, unique=True))
def test_pieces_give_the_same_as_the_whole(seed: int, cuts: list[int]) -> None:
    latents = latents_of(seed)
    accumulator = StatsAccumulator()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 26], strict=True):
        accumulator.add(latents[start:end], offset=start)
    stats = accumulator.finish()
    first = np.arange(26) % 13 == 0
    for row, part in enumerate((latents[first], latents[~first])):
        np.testing.assert_allclose(stats.mean[row], part.astype(np.float64).mean((0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(stats.std[row], part.astype(np.float64).std((0, 2, 3)), rtol=1e-5)


def test_a_large_mean_does_not_eat_the_spread() -> None:
    video = (1e4 + np.random.default_rng(0).standard_normal((13, 16, 32, 32))).astype(np.float32)
    np.testing.assert_allclose(stats_of(video).std, 1, rtol=0.1)


def test_normalised_latents_have_zero_mean_and_unit_variance() -> None:
    videos = [latents_of(0), latents_of(0) + 1]
    stats = stats_of(*videos)
    normal = stats.normalize(np.stack(videos))
    for part in (normal[:, ::13], np.delete(normal, [0, 13], axis=1)):
        np.testing.assert_allclose(part.mean((0, 1, 3, 4)), 0, atol=1e-4)
        np.testing.assert_allclose(part.std((0, 1, 3, 4)), 1, atol=1e-4)


def test_numpy_and_torch_agree_and_windows_keep_their_rows() -> None:
    latents = latents_of(3)
    stats = stats_of(latents)
    normal = stats.normalize(latents)
    tensor = stats.normalize(torch.from_numpy(latents))
    assert isinstance(tensor, torch.Tensor) and normal.dtype == np.float32
    np.testing.assert_allclose(tensor.numpy(), normal, rtol=1e-6)
    np.testing.assert_array_equal(stats.normalize(latents[5:20], offset=5), normal[5:20])
    np.testing.assert_allclose(stats.denormalize(normal), latents, rtol=1e-4, atol=1e-3)
    assert stats.normalize(torch.from_numpy(latents).double()).dtype == torch.float64


def test_a_constant_channel_stays_finite_and_small() -> None:
    latents = latents_of(1)
    latents[:, 3] = 7.0
    stats = stats_of(latents)
    assert stats.std.min() > 0
    assert np.abs(stats.normalize(latents)[:, 3]).max() < 1e-3
    np.testing.assert_array_equal(stats_of(np.zeros((2, 16, 1, 1))).std, 1)


def test_json_is_exact(tmp_path: Path) -> None:
    stats = stats_of(latents_of(2))
    stats.save(tmp_path / "latent_stats.json")
    again = LatentStats.load(tmp_path / "latent_stats.json")
    np.testing.assert_array_equal(again.mean, stats.mean)
    np.testing.assert_array_equal(again.std, stats.std)
    assert again.mean.dtype == np.float32


GOOD = {"mean": [0.0] * 16, "std": [1.0] * 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "must hold exactly `first` and `rest`"),
        (json.dumps({"first": GOOD}), "must hold exactly `first` and `rest`"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "std": [1.0] * 15}}), "`std` must hold a list"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "std": [0.0] * 16}}), "one positive number"),
        (json.dumps({"first": GOOD, "rest": GOOD, "more": GOOD}), "must hold exactly"),
        (json.dumps({"first": GOOD, "rest": [GOOD]}), "`mean` must hold a list of 16 numbers"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "mean": ["1"] * 16}}), "`mean` must hold"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "mean": [[1.0]] * 16}}), "`mean` must hold"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "mean": [True] * 16}}), "`mean` must hold"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "std": [1e39] * 16}}), "`std` must hold a list"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "std": [10**400] * 16}}), "`std` must hold a list"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "std": "1" * 16}}), "`std` must hold a list"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "std": [1e-60] * 16}}), "one positive number"),
        ("[" * 100_000, "is damaged"),
        ("9" * 5000, "is damaged"),
        (json.dumps({"first": GOOD, "rest": {**GOOD, "mean": [float("nan")] * 16}}), "`mean` must hold"),
    ],
)
def test_files_that_are_no_statistics_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "latent_stats.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        LatentStats.load(path)
    assert str(path) in str(error.value)


def test_missing_file_and_missing_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        LatentStats.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no `rest` latents"):
        stats_of(np.zeros((1, 16, 2, 2)))
    with pytest.raises(ValueError, match="not finite"):
        StatsAccumulator().add(np.full((1, 16, 2, 2), np.nan))
    with pytest.raises(ValueError, match="16 channels"):
        stats_of(latents_of(0)).normalize(np.zeros((13, 4, 2, 2)))


def test_a_window_that_begins_inside_a_group_comes_back() -> None:
    """First latents and the rest differ widely here, so that one taken for the other is far off."""
    stats = LatentStats(
        np.array([[3.0] * 16, [-40.0] * 16], np.float32), np.array([[0.5] * 16, [20.0] * 16], np.float32)
    )
    normal = np.random.default_rng(0).standard_normal((30, 16, 2, 3)).astype(np.float32)
    whole = stats.denormalize(normal)
    for offset in range(len(normal)):
        one = normal[offset : offset + 1]
        np.testing.assert_array_equal(stats.denormalize(one, offset), whole[offset : offset + 1])
        np.testing.assert_array_equal(
            stats.denormalize(torch.from_numpy(one), offset).numpy()[0], whole[offset]
        )
        np.testing.assert_allclose(stats.normalize(stats.denormalize(one, offset), offset), one, atol=1e-5)

"""Drift: how a long video's numbers move away from the data's, second by second.

A model that eats its own pictures for much longer than it was trained may lose contrast, colour or shape.
Each channel's mean and spread, over all videos of one second, are compared with the data's: channels are the
three colours (pixel statistics) or the codec's sixteen (codec-space statistics).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Mean and mean square of every channel, float64 [V, T, C] each: V videos, T seconds."""

    mean: np.ndarray
    square: np.ndarray

    def distance(self, data: Moments) -> np.ndarray:
        """float64 [T]: Wasserstein-2 distance of each second's pixels to all of the data's.

        Channels are taken for independent Gaussians; root mean square over them, so it has the unit of the
        values: grey levels, or standard deviations of the data where latents are normalised.
        """
        mean, spread = _gaussian(self, (0,))
        data_mean, data_spread = _gaussian(data, (0, 1))
        return np.sqrt(np.mean((mean - data_mean) ** 2 + (spread - data_spread) ** 2, axis=-1))

    def rows(self, rows: np.ndarray) -> Moments:
        """Those of some of the videos."""
        return Moments(self.mean[rows], self.square[rows])


def by_second(values: np.ndarray, seconds: np.ndarray, whole: int) -> np.ndarray:
    """float64 [V, T, ...]: means of values [V, n, ...] over each of T = `whole` seconds.

    seconds [n]: when the values begin. What comes after the last whole second counts to it.
    """
    assert values.shape[1] == len(seconds), (values.shape, seconds.shape)
    second = np.minimum(np.floor(seconds).astype(int), whole - 1)
    return np.stack([values[:, second == t].mean(1, dtype=np.float64) for t in range(whole)], axis=1)


def moments(values: np.ndarray, seconds: np.ndarray, whole: int) -> Moments:
    """Moments of values [V, n, H, W, C] that begin at `seconds` [n], by second."""
    mean = values.mean((2, 3), dtype=np.float64)
    square = np.stack([np.square(video, dtype=np.float32).mean((1, 2), dtype=np.float64) for video in values])
    return Moments(by_second(mean, seconds, whole), by_second(square, seconds, whole))


def _gaussian(of: Moments, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel over `axes`; videos that are NaN do not count."""
    mean, square = np.nanmean(of.mean, axes), np.nanmean(of.square, axes)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))

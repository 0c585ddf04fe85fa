"""Mean and spread of a data set's latents, so that the model sees zero mean and unit variance.

Flow matching mixes latents with unit noise, and raw latents have their own scale. The first latent of a group
holds one frame and the others four, and their statistics differ strongly (Cosmos' CV8x8x8 tokenizer ships its
statistics per latent index for that reason), so there are two sets per channel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from megatv.config import GROUP_LATENTS, LATENT_CHANNELS
from megatv.data.files import read_json

Latents = TypeVar("Latents", np.ndarray, Tensor)

ROWS = ("first", "rest")
MIN_STD_RATIO = 1e-4
"""No std is below this share of its row's largest, so that a constant channel does not blow up."""


@dataclass(frozen=True)
class LatentStats:
    """mean, std: float32 [2, C]; row 0 for the first latent of every group, row 1 for the rest."""

    mean: np.ndarray
    std: np.ndarray

    def normalize(self, latents: Latents, offset: int = 0) -> Latents:
        """(latents - mean) / std of [..., N, C, h, w], numpy or torch, the first with index `offset`."""
        mean, std = self._along(latents, offset)
        return (latents - mean) / std

    def denormalize(self, latents: Latents, offset: int = 0) -> Latents:
        """The inverse of `normalize`."""
        mean, std = self._along(latents, offset)
        return latents * std + mean

    def save(self, path: str | Path) -> None:
        """Write JSON: {"first": {"mean": [C], "std": [C]}, "rest": ...}."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def fingerprint(self) -> str:
        """xxh64 of the numbers: equal for equal statistics, wherever they are stored."""
        return xxhash.xxh64(np.stack([self.mean, self.std]).astype("<f4").tobytes()).hexdigest()

    def to_dict(self) -> dict[str, dict[str, list[float]]]:
        """Plain data that `from_dict` reads back bit for bit."""
        return {
            row: {"mean": self.mean[i].tolist(), "std": self.std[i].tolist()} for i, row in enumerate(ROWS)
        }

    @staticmethod
    def from_dict(tree: object, where: str = "latent statistics") -> LatentStats:
        """Check plain data and build the statistics; ValueError names `where` and the fault."""
        if not isinstance(tree, dict) or sorted(tree) != sorted(ROWS):
            raise ValueError(f"{where}: must hold exactly `first` and `rest`, each with `mean` and `std`")
        arrays = {}
        for key in ("mean", "std"):
            rows = [row.get(key) if isinstance(row, dict) else None for row in (tree[name] for name in ROWS)]
            if not all(_are_numbers(values) for values in rows):
                raise ValueError(
                    f"{where}: `{key}` must hold a list of {LATENT_CHANNELS} numbers under `first` and `rest`"
                )
            arrays[key] = np.array(rows, np.float32)
        stats = LatentStats(**arrays)
        if (stats.std <= 0).any():
            raise ValueError(f"{where}: `std` must hold one positive number for every `mean`")
        return stats

    @staticmethod
    def load(path: str | Path) -> LatentStats:
        """Read what `save` wrote. Raises ValueError when the file is missing or not such a file."""
        return LatentStats.from_dict(read_json(Path(path)), str(path))

    def _along(self, latents: Latents, offset: int) -> tuple[Latents, Latents]:
        """Mean and std of every latent in the array, [N, C, 1, 1], in its library, type and place."""
        if latents.ndim < 4 or latents.shape[-3] != self.mean.shape[1]:
            raise ValueError(
                f"latents of shape {list(latents.shape)} do not fit statistics of {self.mean.shape[1]} "
                "channels: give [..., latents, channels, height, width]"
            )
        rows = _row_of(latents.shape[-4], offset)
        mean, std = (values[rows][:, :, None, None] for values in (self.mean, self.std))
        if isinstance(latents, Tensor):
            return torch.from_numpy(mean).to(latents), torch.from_numpy(std).to(latents)
        return mean, std


@dataclass
class StatsAccumulator:
    """Statistics of latents that arrive piece by piece, in float64, merged by Chan's parallel formula."""

    count: np.ndarray = field(default_factory=lambda: np.zeros((2, 1)))
    mean: np.ndarray = field(default_factory=lambda: np.zeros((2, LATENT_CHANNELS)))
    squares: np.ndarray = field(default_factory=lambda: np.zeros((2, LATENT_CHANNELS)))

    def add(self, latents: np.ndarray, offset: int = 0) -> None:
        """Count raw latents [N, C, h, w] in; the first of them has index `offset` in its video.

        Raises ValueError when one is not finite.
        """
        rows = _row_of(len(latents), offset)
        for row in set(rows.tolist()):
            values = np.moveaxis(latents[rows == row], 1, 0).reshape(latents.shape[1], -1).astype(np.float64)
            if not np.isfinite(values).all():
                raise ValueError("latents are not finite: the codec overflows on this video or is damaged")
            count, mean = values.shape[1], values.mean(1)
            total, delta = self.count[row] + count, mean - self.mean[row]
            self.mean[row] += delta * count / total
            self.squares[row] += values.var(1) * count + delta**2 * self.count[row] * count / total
            self.count[row] = total

    def finish(self) -> LatentStats:
        """The statistics of all that was added. Raises ValueError when one of the two sets saw nothing."""
        for i, row in enumerate(ROWS):
            if not self.count[i]:
                raise ValueError(
                    f"no `{row}` latents were seen: give videos of at least 5 frames, cut at group starts"
                )
        std = np.sqrt(self.squares / self.count)
        largest = std.max(axis=1, keepdims=True)
        std = np.maximum(std, np.where(largest > 0, largest * MIN_STD_RATIO, 1.0))
        return LatentStats(self.mean.astype(np.float32), std.astype(np.float32))


def _are_numbers(values: object) -> bool:
    """Whether it is a list of one number a channel that float32 can hold; JSON also has NaN and 1e400."""
    largest = float(np.finfo(np.float32).max)
    return (
        isinstance(values, list)
        and len(values) == LATENT_CHANNELS
        and all(type(value) in (int, float) and -largest <= value <= largest for value in values)
    )


def _row_of(latents: int, offset: int) -> np.ndarray:
    """Row of the statistics for every latent, int64 [N]."""
    return np.minimum((np.arange(latents) + offset) % GROUP_LATENTS, 1)

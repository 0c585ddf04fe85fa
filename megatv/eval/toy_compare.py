"""The arms of the experiment side by side: every figure with its interval, every difference paired by start.

Takes what `megatv.eval.toy_arm` measured. With several seeds a start's numbers are those of all its seeds,
and starts are what is resampled: they, not single videos, were drawn independently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_world import State
from megatv.eval.bootstrap import Estimate, estimate
from megatv.eval.drift import Moments
from megatv.eval.frechet import frechet_distance
from megatv.eval.pairwise import win_tie_lose
from megatv.eval.toy_arm import Measured
from megatv.eval.toy_scores import INTERVENTIONS, rate
from megatv.eval.toy_starts import CHUNKS

BANDS = (1.0, 0.5, 2.0)
"""Tie bands in dB of the pairwise comparison: the one that is reported, and what others would say."""
OURS = "tv2tv"
DRAWS, DRAWS_FRECHET, DRAWS_SECONDS = 1000, 200, 200


class Arm:
    """One arm's measurements by name, the seeds stacked: [S, V, ...]."""

    def __init__(self, runs: list[Measured]) -> None:
        self._runs = runs

    def __contains__(self, key: str) -> bool:
        return key in self._runs[0]

    def __getitem__(self, key: str) -> np.ndarray:
        return np.stack([run[key] for run in self._runs])

    @property
    def starts(self) -> int:
        """V, how many starts there are."""
        return int(self["alone_psnr"].shape[1])


@dataclass(frozen=True)
class Metric:
    """One figure of an arm. key: measurement that it needs; of: from its values [S, rows, ...]."""

    name: str
    label: str
    unit: str
    key: str
    of: Callable[[np.ndarray], float]
    basic: bool = False
    draws: int = DRAWS


def mean(values: np.ndarray) -> float:
    """Of all that is known."""
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else float("nan")


def mean_of_cells(values: np.ndarray) -> float:
    """Mean over cells (the last axis) of each cell's mean, however many starts it could be judged on."""
    known = (~np.isnan(values)).sum((0, 1))
    cells = np.nansum(values, axis=(0, 1))[known > 0] / known[known > 0]
    return float(cells.mean()) if len(cells) else float("nan")


def metrics(truth: Arm) -> list[Metric]:
    """All figures that are one number an arm."""
    parts = [
        Metric(
            f"wrong_{part}", f"told all words: frames with wrong {part}", "%", "told_wrong", partial(_part, i)
        )
        for i, part in enumerate(State._fields)
    ]
    found = [
        Metric("done", "interventions done, mean of all", "%", "done", mean_of_cells),
        Metric("without", "the same actions, left alone", "%", "without", mean_of_cells),
        Metric(
            "steered_psnr", "PSNR to the nearest valid frame after interventions", "dB", "steered_psnr", mean
        ),
        Metric("valid", "valid action lines", "%", "alone_valid", mean),
        Metric("followed", "chunks that show their own words exactly", "%", "alone_followed", mean),
        Metric("told_psnr", "told all words: PSNR against the simulator's frames", "dB", "told_psnr", mean),
        Metric("told_ssim", "told all words: SSIM against the simulator's frames", "", "told_ssim", mean),
        Metric("told_yaw", "told all words: mean error of the view's direction", "pixels", "told_yaw", mean),
        *parts,
    ]
    for name, label in (("alone", "short"), ("long", "long")):
        found += [
            Metric(f"{name}_psnr", f"{label}: PSNR to the nearest valid frame", "dB", f"{name}_psnr", mean),
            Metric(f"{name}_impossible", f"{label}: impossible transitions", "%", f"{name}_impossible", mean),
        ]
    for name, label in (("alone", "short"), ("own", "short, words at temperature 1"), ("long", "long")):
        key, of = f"{name}_features", partial(_frechet, _flat(truth[f"{name}_features"]))
        text = f"{label}: Frechet distance of the eye's features"
        found.append(Metric(f"{name}_frechet", text, "", key, of, True, DRAWS_FRECHET))
    return found


def compare(arms: dict[str, list[Measured]], truth: Measured) -> dict[str, Any]:
    """Every score as plain data; `arms` by mode, one entry a seed; `truth`: `measure_truth`."""
    joined, data = {mode: Arm(runs) for mode, runs in arms.items()}, Arm([truth])
    others = [mode for mode in arms if mode != OURS]
    figures = []
    for metric in metrics(data):
        row: dict[str, Any] = {"name": metric.name, "label": metric.label, "unit": metric.unit}
        row["data"] = _of_data(metric, data)
        row["arms"] = {
            mode: _of(metric, arm[metric.key]) for mode, arm in joined.items() if metric.key in arm
        }
        row["ahead_of"] = {
            mode: _difference(metric, joined[OURS], joined[mode])
            for mode in others
            if metric.key in joined[mode] and metric.key in joined[OURS]
        }
        figures.append(row)
    return {
        "starts": data.starts,
        "ended_early": {mode: int(np.isnan(arm["alone_psnr"]).any(-1).sum()) for mode, arm in joined.items()},
        "figures": figures,
        "interventions": interventions(joined),
        "pairwise": [
            {"against": mode, "videos": name, "band": band, **win_tie_lose(ours, theirs, band)}
            for mode in others
            for name, key in (("short", "alone_psnr"), ("long", "long_psnr"))
            for ours, theirs in [(joined[OURS][key].mean(-1), joined[mode][key].mean(-1))]
            for band in BANDS
        ],
        "drift": {mode: drift(arm, data) for mode, arm in {**joined, "data": data}.items()},
    }


def interventions(arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """One row an action and time, with Wilson intervals: done when told, and shown when left alone."""
    cells = [(name, chunk) for chunk in CHUNKS for name in INTERVENTIONS]
    able = {mode: arm for mode, arm in arms.items() if "done" in arm}
    return [
        {
            "action": name,
            "seconds": chunk_start_seconds(chunk),
            "arms": {
                mode: {
                    "done": rate(arm["done"][..., cell].ravel()),
                    "without": rate(arm["without"][..., cell].ravel()),
                    "psnr": _mean_of(arm["steered_psnr"][..., cell], arm.starts),
                }
                for mode, arm in able.items()
            },
        }
        for cell, (name, chunk) in enumerate(cells)
    ]


def drift(arm: Arm, data: Arm) -> dict[str, list[Any]]:
    """The long videos by second: figures with intervals, and how far their statistics are from the data's."""
    seconds = arm["long_psnr"].shape[-1]
    found: dict[str, list[Any]] = {"second": list(range(1, seconds + 1))}
    for key in ("psnr", "impossible"):
        values = arm[f"long_{key}"]
        found[key] = [
            _mean_of(values[..., second], arm.starts, draws=DRAWS_SECONDS) for second in range(seconds)
        ]
    for kind in ("pixel", "latent"):
        reference = _moments(data, kind)
        found[kind] = _moments(arm, kind).distance(reference).tolist()
    return found


def _mean_of(values: np.ndarray, starts: int, draws: int = DRAWS) -> Estimate:
    """The mean of values [S, V]."""
    return estimate(lambda rows: mean(values[:, rows]), starts, draws=draws)


def _moments(arm: Arm, kind: str) -> Moments:
    """Of the long videos of all seeds."""
    parts = (arm[f"long_{kind}_{part}"] for part in ("mean", "square"))
    return Moments(*(part.reshape(-1, *part.shape[2:]) for part in parts))


def _of(metric: Metric, values: np.ndarray) -> Estimate:
    """Of one arm's values [S, V, ...]."""
    found = estimate(
        lambda rows: metric.of(values[:, rows]), values.shape[1], draws=metric.draws, basic=metric.basic
    )
    if metric.basic and found["low"] is not None:
        found["low"] = max(0.0, found["low"])  # no distance is less; the basic interval does not know
    return found


def _of_data(metric: Metric, data: Arm) -> Estimate | None:
    """Of true episodes through the codec; of a Frechet distance, that of as many other true episodes."""
    if metric.key.endswith("features"):
        return _of(metric, data[metric.key.replace("features", "other_features")])
    return _of(metric, data[metric.key]) if metric.key in data else None


def _difference(metric: Metric, ours: Arm, theirs: Arm) -> Estimate:
    """Ours minus theirs, from the same starts."""
    a, b = ours[metric.key], theirs[metric.key]
    return estimate(
        lambda rows: metric.of(a[:, rows]) - metric.of(b[:, rows]),
        ours.starts,
        draws=metric.draws,
        basic=metric.basic,
    )


def _part(part: int, values: np.ndarray) -> float:
    return mean(values[..., part])


def _frechet(data: np.ndarray, features: np.ndarray) -> float:
    return frechet_distance(_flat(features), data)


def _flat(features: np.ndarray) -> np.ndarray:
    """[n, D] of [S, V, chunks, D], videos that are NaN left out."""
    flat = features.reshape(-1, features.shape[-1])
    return flat[~np.isnan(flat).any(1)]

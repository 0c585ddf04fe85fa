"""Scores of a set of videos: of every frame, every video and the set, with intervals over videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from megatv.eval.bootstrap import Estimate, estimate
from megatv.eval.fvd import Features, fvd
from megatv.eval.instructions import POINTS, Orders
from megatv.eval.lpips import Distance
from megatv.eval.similarity import RADIUS, psnr, ssim
from megatv.eval.video_pairs import read_pair

PerVideo = dict[str, dict[str, Any]]
"""{video: {metric: {"mean": of its frames or orders, ...}}}"""
SMALLEST = 2 * RADIUS + 1


def compare(
    pairs: Iterable[tuple[str, tuple[Path, Path]]],
    metrics: dict[str, Distance],
    features: Features | None = None,
) -> tuple[PerVideo, Estimate | None]:
    """Score videos against their references: every frame by `metrics`, and the set's FVD by `features`.

    One pair is in memory at a time. Raises ValueError for a video that cannot be read or compared.
    """
    per_video: PerVideo = {}
    sets: list[tuple[np.ndarray, np.ndarray]] = []
    for name, (video, reference) in pairs:
        frames, truth = read_pair(video, reference)
        if "ssim" in metrics and min(frames.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"{video}: is {frames.shape[2]}x{frames.shape[1]}, and ssim needs {SMALLEST} pixels or more "
                "each way; leave it out of --metrics"
            )
        per_video[name] = {}
        for metric, distance in metrics.items():
            values = distance(frames, truth)
            per_video[name][metric] = {"mean": float(values.mean()), "frames": values.tolist()}
        if features is not None:
            sets.append((features(frames), features(truth)))
    if features is None:
        return per_video, None
    ours, theirs = (np.stack(side) for side in zip(*sets, strict=True))
    return per_video, fvd(ours, theirs)


def by_frame(metric: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Distance:
    """A metric of pictures for one frame after the other: SSIM's windows of a whole video take gigabytes."""
    return lambda frames, truth: np.array([metric(a, b) for a, b in zip(frames, truth, strict=True)])


PLAIN: dict[str, Distance] = {"psnr": by_frame(psnr), "ssim": by_frame(ssim)}
"""The metrics that need no weights."""


def judged(orders: dict[str, Orders], answers: dict[str, list[str]]) -> PerVideo:
    """A vision-language model's answers as scores, each beside its order."""
    found: PerVideo = {}
    for name, said in answers.items():
        rows = [
            {"seconds": seconds, "text": text, "answer": answer}
            for (seconds, text), answer in zip(orders[name].spoken, said, strict=True)
        ]
        found[name] = {"vlm": {"mean": float(np.mean([POINTS[a] for a in said])), "orders": rows}}
    return found


def mean_over_videos(per_video: PerVideo, metric: str) -> dict[str, float | None]:
    """{value, low, high, videos}: the mean of the videos' means; one video has no interval."""
    values = np.array([scores[metric]["mean"] for scores in per_video.values() if metric in scores])
    found = estimate(lambda rows: float(values[rows].mean()), len(values))
    return {**found, "videos": len(values)}

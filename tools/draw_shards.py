"""Histograms of what a shard directory holds: durations, words, times, scores and latent statistics."""

from __future__ import annotations

from pathlib import Path

from megatv.config import FPS
from megatv.data.record import Record
from megatv.data.shards import Shards
from megatv.model.codec import latents_to_frames

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, INK = "#3f5fa8", "#e0763f", "#33312c"


def draw_stats(records: list[Record], shards: Shards, path: Path) -> str:
    """Save the PNG and return a line of the same facts as medians."""
    captions = [caption for record in records for caption in record.captions]
    measured: dict[str, list[float]] = {
        "seconds of real frames": [(r.frames or latents_to_frames(r.valid_latents)) / FPS for r in records],
        "captions an example": [float(len(r.captions)) for r in records],
        "words a caption": [float(len(c.text.split())) for c in captions],
        "caption times in seconds": [c.start_seconds for c in captions],
    }
    for name in sorted({name for record in records for name in record.quality}):
        measured[f"quality: {name}"] = [r.quality[name] for r in records if name in r.quality]
    rows = -(-(len(measured) + 2) // 3)
    figure = Figure(figsize=(14, 3.6 * rows), facecolor="white", layout="constrained")
    panels = list(figure.subplots(rows, 3).flat)
    for axes, (name, values) in zip(panels, measured.items(), strict=False):
        _histogram(axes, name, np.array(values, float))
    for axes, name in zip(panels[len(measured) :], ("mean", "std"), strict=False):
        values = getattr(shards.stats, name)
        channels = np.arange(values.shape[1])
        axes.bar(channels - 0.2, values[0], 0.4, color=ORANGE, label="first of a group")
        axes.bar(channels + 0.2, values[1], 0.4, color=BLUE, label="the rest")
        axes.set_title(f"latent {name} by channel", color=INK)
        axes.legend(frameon=False)
    for axes in panels[len(measured) + 2 :]:
        axes.axis("off")
    figure.suptitle(
        f"{len(records)} examples of {shards.info.width}x{shards.info.height}, {shards.info.stores}",
        color=INK,
        fontsize=15,
    )
    figure.savefig(path, dpi=90, format="png")
    medians = [f"{name} {np.median(values):g}" for name, values in measured.items() if values]
    return f"{len(records)} examples; medians: " + ", ".join(medians)


def _histogram(axes: Axes, name: str, values: np.ndarray) -> None:
    axes.set_title(name, color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    if not len(values):
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes, color=INK)
        return
    whole = (values == values.round()).all() and np.ptp(values) < 60
    bins: int | list[float] = 30
    if whole:
        bins = np.arange(values.min() - 0.5, values.max() + 1).tolist()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hist(values, bins=bins, color=BLUE, rwidth=0.9)
    axes.set_ylabel("count", color=INK)

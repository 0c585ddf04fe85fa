"""The plots of `experiment.py`: interventions, pairs and drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"tv2tv": "#d9480f", "think2v": "#1971c2", "t2v": "#868e96", "data": "#2b8a3e"}
OUTCOMES = {"win": "#d9480f", "tie": "#dee2e6", "lose": "#495057"}
PANELS = (
    ("psnr", "dB to the nearest valid frame"),
    ("impossible", "impossible transitions, %"),
    ("pixel", "pixel statistics:\ngrey levels from the data's"),
    ("latent", "codec statistics:\nstandard deviations from the data's"),
)


def draw(out: Path, scores: dict[str, Any], names: dict[str, str]) -> None:
    """Write interventions.png, pairwise.png and drift.png. names: of the arms, for people."""
    with pyplot.rc_context(
        {"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        for name, figure in (
            ("interventions", interventions(scores, names)),
            ("pairwise", pairwise(scores, names)),
            ("drift", drift(scores, names)),
        ):
            figure.canvas.draw()
            pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
            pixels.quantize(64, dither=Image.Dither.NONE).save(out / f"{name}.png", optimize=True)
            pyplot.close(figure)


def interventions(scores: dict[str, Any], names: dict[str, str]) -> Any:
    """Bars with intervals: each action at each time, and the mean; a tick shows the no-op control."""
    rows = scores["interventions"]
    modes = [mode for mode in ("tv2tv", "think2v") if rows and mode in rows[0]["arms"]]
    means = {row["name"]: row["arms"] for row in scores["figures"] if row["name"] in ("done", "without")}
    figure, axis = pyplot.subplots(figsize=(9, 3.4), constrained_layout=True)
    width = 0.8 / max(1, len(modes))
    for i, mode in enumerate(modes):
        cells = [row["arms"][mode] for row in rows]
        done = [_triple(cell["done"], "mean") for cell in cells] + [_triple(means["done"][mode], "value")]
        control = [_triple(c["without"], "mean")[0] for c in cells] + [
            _triple(means["without"][mode], "value")[0]
        ]
        middle, low, high = 100 * np.array(done).T
        x = np.append(np.arange(len(rows)), len(rows) + 0.4) + (i - (len(modes) - 1) / 2) * width
        error = np.maximum([middle - low, high - middle], 0)
        axis.bar(x, middle, width * 0.92, color=COLOURS[mode], label=names[mode])
        axis.errorbar(x, middle, error, fmt="none", ecolor="#212529", elinewidth=1, capsize=2)
        axis.hlines(
            100 * np.array(control),
            x - width * 0.46,
            x + width * 0.46,
            color="#212529",
            linestyle="--",
            label="" if i else "shown without the words (no-op)",
        )
    labels = [f"{row['action'].replace('_', ' ')}\n{row['seconds']:.2f} s" for row in rows]
    axis.set_xticks([*range(len(rows)), len(rows) + 0.4], [*labels, "mean"])
    axis.set(ylabel="intervention shown, %", ylim=(0, 105), title="Words changed for one chunk")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    return figure


def pairwise(scores: dict[str, Any], names: dict[str, str]) -> Any:
    """Stacked bars at the reported tie band: TV2TV against each rival, short and long videos."""
    band = scores["pairwise"][0]["band"]
    rows = [row for row in scores["pairwise"] if row["band"] == band][::-1]
    figure, axis = pyplot.subplots(figsize=(7, 0.6 + 0.5 * len(rows)), constrained_layout=True)
    for y, row in enumerate(rows):
        left = 0.0
        for outcome, colour in OUTCOMES.items():
            share = 100 * (row[outcome]["mean"] or 0.0)
            axis.barh(y, share, 0.7, left=left, color=colour, label=outcome if y == 0 else None)
            if share >= 6:
                ink = "#212529" if outcome == "tie" else "white"
                axis.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", color=ink)
            left += share
    axis.set_yticks(range(len(rows)), [f"{row['videos']}, against {names[row['against']]}" for row in rows])
    axis.set(xlim=(0, 100), xlabel=f"% of starts (a difference of {band:g} dB or less is a tie)")
    axis.set_title("TV2TV wins, ties and loses by PSNR to the nearest valid frame", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, frameon=False)
    return figure


def drift(scores: dict[str, Any], names: dict[str, str]) -> Any:
    """Four panels over time, one line an arm; bands are 95 % intervals."""
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.2), constrained_layout=True, sharex=True)
    for axis, (key, title) in zip(axes.flat, PANELS, strict=True):
        for mode, curve in scores["drift"].items():
            style = {"color": COLOURS[mode], "linestyle": "--" if mode == "data" else "-"}
            if key in ("psnr", "impossible"):
                scale = 100 if key == "impossible" else 1
                middle, low, high = scale * np.array([_triple(point, "value") for point in curve[key]]).T
                axis.fill_between(curve["second"], low, high, color=COLOURS[mode], alpha=0.18, linewidth=0)
            else:
                middle = np.array(curve[key])
            axis.plot(curve["second"], middle, label=names[mode], linewidth=1.4, **style)
        axis.axvline(scores["trained_frames"] / 16, color="#adb5bd", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize=9)
        if key != "psnr":
            axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("second of the video (line: the trained length)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _triple(estimate: dict[str, Any], middle: str) -> tuple[float, float, float]:
    """(middle, low, high), each NaN where it could not be measured."""
    middle_low_high = (estimate[key] for key in (middle, "low", "high"))
    found, low, high = (float("nan") if value is None else value for value in middle_low_high)
    return found, low, high

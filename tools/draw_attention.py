"""Draw the packed row, its mask and the tiles that a kernel visits: the picture of kernels/README.md.

python tools/draw_attention.py docs/attention.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from megatv_kernels import AttentionRecord, Document, build_record

COLOURS = {"text": "#2f8f83", "clean": "#3f5fa8", "own chunk": "#e0763f"}
EDGE, INK = "#c9c3b4", "#33312c"
TILE = 4, 4


def example() -> AttentionRecord:
    """Documents `tt chunk t chunk` and `ttt chunk`, 8 tokens a chunk; a text row and a chunk stay free."""
    documents = [
        Document(np.array([0, 0, 1]), np.array([2, 3])),
        Document(np.array([0, 0, 0]), np.array([3])),
    ]
    return build_record(documents, text_rows=7, chunk_rows=8, chunks=4)


def draw(record: AttentionRecord, path: Path) -> None:
    """Write the PNG: rows see coloured columns; outlined is what one forward item and its tile cover."""
    picture = np.zeros((record.rows, record.rows), int)
    for row, spans in enumerate(record.intervals.tolist()):
        for colour, (lo, hi) in enumerate(spans, 1):
            picture[row, lo:hi] = colour
    figure = Figure(figsize=(6.4, 6.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, cmap=ListedColormap(["white", *COLOURS.values()]), interpolation="nearest")
    starts = [0, *range(record.text_rows, record.rows, record.chunk_rows)]
    for at in [*starts, record.documents[0, 0, 1].item()]:
        axes.axhline(at - 0.5, color=EDGE, lw=0.6)
        axes.axvline(at - 0.5, color=EDGE, lw=0.6)
    q_lo, q_hi, *ranges = chosen(record)
    for k_lo, k_full_hi, k_hi in zip(ranges[::3], ranges[1::3], ranges[2::3], strict=True):
        for lo, hi, style in ((k_lo, k_full_hi, "-"), (k_full_hi, k_hi, ":")):
            if lo < hi:
                corner = (lo - 0.5, q_lo - 0.5)
                axes.add_patch(Rectangle(corner, hi - lo, q_hi - q_lo, fill=False, ec=INK, lw=2, ls=style))
    names = ["text"] + [f"{kind} {i}" for kind in ("clean", "noisy") for i in ("0", "1", "0'", "free")]
    middles = (np.array(starts) + np.append(starts[1:], record.rows)) / 2 - 0.5
    axes.set_xticks(middles, names, rotation=60, fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("keys")
    axes.set_ylabel("query rows")
    handles = [Patch(color=colour, label=f"{name} interval") for name, colour in COLOURS.items()]
    handles.append(Patch(fill=False, ec=INK, lw=2, label="one forward item"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


def chosen(record: AttentionRecord) -> list[int]:
    """The forward item of the noisy copy of chunk 1: rows that see all three kinds of keys."""
    lo = record.documents[0, 2, 0].item() + record.chunk_rows
    return next(item for item in record.work(*TILE).forward.tolist() if item[0] == lo)


if __name__ == "__main__":
    draw(example(), Path(sys.argv[1] if len(sys.argv) > 1 else "docs/attention.png"))

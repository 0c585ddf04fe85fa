"""One training sequence as text and as a picture, for `inspect_sequence.py`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from megatv.config import LATENT_CHANNELS, Config
from megatv.data.describe import describe, runs
from megatv.data.loader import check_shards, window_of
from megatv.data.sequence import build_sequence, chunk_start_seconds
from megatv.data.shards import Shards
from megatv.data.tokenizer import load_tokenizer
from megatv.data.toy_world import META_PROMPT, simulate
from megatv.data.toy_world import words as action_line
from megatv.log import say
from megatv.model.codec import clip_encoder, load_codec
from megatv.types import Caption, Example, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from megatv_kernels import Document, build_record
from megatv_kernels.reference import dense_mask

DEMO_CHUNKS = 4
COLOURS = {"text": "#2f8f83", "clean": "#3f5fa8", "noisy": "#e0763f"}
PAPER, INK = "#f5f2ea", "#33312c"
VIDEO_ROWS = 800
"""Longer chunks are drawn by fewer tokens than they have, so that text stays visible beside them."""


@dataclass(frozen=True)
class Part:
    """A run of rows of one kind (text, clean, noisy). rows: their places in the packed order."""

    kind: str
    label: str
    rows: range


def inspect(args: argparse.Namespace, config: Config) -> None:
    """Print the sequence that the options name, and draw it."""
    tokenizer = load_tokenizer(config.tokenizer.path, config.model.vocab)
    if args.demo:
        example = demo_example(config)
    else:
        trust = args.trust_codec
        shards = Shards(config.data.train, lambda: clip_encoder(load_codec(config.codec, trust=trust)))
        check_shards(shards, config)
        if not 0 <= args.index < len(shards):
            raise ValueError(f"--index {args.index}: {shards.path} holds samples 0 to {len(shards) - 1}")
        record = shards.record(args.index)
        example = shards.example(record, window_of(shards, record, config, args.epoch))
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: give the name of a PNG file in a folder that exists")
    sequence = build_sequence(example, tokenizer, config, seed=config.run.seed, epoch=args.epoch)
    for line in describe(example, sequence, tokenizer, config):
        say(line)
    draw(sequence, config, args.out)
    print(f"drawing: {args.out}")


def demo_example(config: Config) -> Example:
    """The opening of a toy-world game: true words, latents of noise, the rest marked as padding."""
    shape = (config.latents, LATENT_CHANNELS, config.latent_height, config.latent_width)
    actions = simulate(seed=0).actions[:DEMO_CHUNKS]
    lines = [action_line(action) for action in actions]
    return Example(
        id="demo",
        latents=np.random.default_rng(0).standard_normal(shape, dtype=np.float32),
        captions=tuple(Caption(chunk_start_seconds(i), line) for i, line in enumerate(lines)),
        meta_caption=META_PROMPT,
        detailed_caption="\n".join(lines),
        valid_latents=DEMO_CHUNKS,
        ends_clip=False,
    )


def parts_in_time(sequence: Sequence, tokens: int) -> list[Part]:
    """Text runs, noisy and clean copies as eq. 1 of TV2TV orders them."""
    texts, chunks = runs(sequence), len(sequence.chunk_loss)
    parts = []
    for i, rows in enumerate(texts):
        parts.append(Part("text", f"text {i}" if i < chunks else "", rows))
        if i < chunks:
            clean = len(sequence.text_ids) + i * tokens
            noisy = clean + chunks * tokens
            role = "clean" if sequence.clean_t[i] == 1 else "flipped"
            parts.append(Part("noisy", f"noisy {i}", range(noisy, noisy + tokens)))
            parts.append(Part("clean", f"{role} {i}", range(clean, clean + tokens)))
    return parts


def draw(sequence: Sequence, config: Config, path: Path) -> None:
    """Write the PNG: the mask in order of time, and the same mask in packed order."""
    chunks, tokens = len(sequence.chunk_loss), config.tokens_per_chunk
    document = Document(sequence.text_sees_chunks, sequence.chunk_sees_text)
    size = {"text_rows": len(sequence.text_ids), "chunks": chunks}
    record = build_record([document], chunk_rows=tokens, **size)
    shown = min(tokens, max(2, VIDEO_ROWS // (2 * chunks)))
    mask = dense_mask(build_record([document], chunk_rows=shown, **size)).numpy()
    in_time = parts_in_time(sequence, shown)
    packed = sorted(in_time, key=lambda part: part.rows.start)
    figure = Figure(figsize=(15, 8.6), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, mask, in_time, "in order of time")
    _panel(right, mask, packed, "as packed: text | clean | noisy")
    thinned = "" if shown == tokens else f"; {shown} of {tokens} tokens of each chunk are drawn"
    figure.suptitle(
        f"A row sees its coloured columns: {config.sequence.mode}, {chunks} chunks, {record.rows:,} rows, "
        f"{record.live_pairs() / record.rows**2:.0%} of the square alive{thinned}\n",
        fontsize=14,
        color=INK,
    )
    seen = {"text": "all before it", "clean": "all before it, and itself", "noisy": "only itself"}
    legend = [Patch(color=colour, label=f"{kind}: {seen[kind]}") for kind, colour in COLOURS.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False, fontsize=12)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)


def _panel(axes: Axes, mask: np.ndarray, parts: list[Part], title: str) -> None:
    """One square: colour of a cell = kind of the key (column) that the query (row) sees."""
    kinds = list(COLOURS)
    rows = np.concatenate([np.arange(part.rows.start, part.rows.stop) for part in parts])
    kind_of_row = np.concatenate([np.full(len(part.rows), 1 + kinds.index(part.kind)) for part in parts])
    cells = mask[np.ix_(rows, rows)] * kind_of_row.astype(np.uint8)
    size, crowded = len(rows), len(parts) > 30
    axes.imshow(
        cells,
        cmap=ListedColormap([to_rgb(c) for c in (PAPER, *COLOURS.values())]),
        vmin=0,
        vmax=len(kinds),
        extent=(0, size, size, 0),
        interpolation="nearest",
    )
    strip, edge = size * 0.016, 0
    places, labels = [], []
    for part in parts:
        length = len(part.rows)
        for x, y, wide, high in ((edge, -2 * strip, length, strip), (-2 * strip, edge, strip, length)):
            axes.add_patch(Rectangle((x, y), wide, high, color=COLOURS[part.kind], lw=0))
        axes.axhline(edge, color="white", lw=0.4 if crowded else 0.9)
        axes.axvline(edge, color="white", lw=0.4 if crowded else 0.9)
        if length > size / 120:  # room for a label
            places.append(edge + length / 2)
            labels.append(part.label)
        edge += length
    axes.set_yticks(places, labels, fontsize=7 if crowded else 9, color=INK)
    axes.set_xticks(places, labels, fontsize=7 if crowded else 9, color=INK, rotation=90)
    axes.set(xlim=(-2 * strip, size), ylim=(size, -2 * strip))
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(title, fontsize=13, color=INK, labelpad=8)

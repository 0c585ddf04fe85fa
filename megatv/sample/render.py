"""Pictures for people: a contact sheet with the plan as subtitles, and frames large enough to watch."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megatv.config import FPS
from megatv.data.csgo_actions import meaning
from megatv.sample.request import ChunkWords, Result

TILE = 168
"""Width of a tile's picture in pixels; small worlds are enlarged by whole factors, large videos shrunk."""
GAP, MARGIN, HEAD, LINE = 10, 24, 22, 16
COLUMNS = 7
MAX_LINES = 6
WATCHABLE = 256
"""Least size in pixels of the shorter side of a video for people."""

PAPER, INK, FAINT, ACCENT, ACCENT_PAPER = "#ffffff", "#1f2328", "#8b949e", "#d9480f", "#ffe8cc"


@dataclass(frozen=True)
class Strip:
    """One video of a sheet: its name, its frames uint8 [F, H, W, 3], the words of its chunks."""

    name: str
    frames: np.ndarray
    words: tuple[ChunkWords, ...]

    @classmethod
    def of(cls, name: str, result: Result) -> Strip:
        """The strip of a finished video."""
        return cls(name, result.frames, result.transcript)

    def picture(self, chunk: int) -> np.ndarray:
        """uint8 [H, W, 3]: the chunk's second frame, where what its words started can be seen."""
        first = round(self.words[chunk].start_seconds * FPS)
        following = self.words[chunk + 1 :][:1]
        end = round(following[0].start_seconds * FPS) if following else len(self.frames)
        return self.frames[min(first + 1, end - 1)]


def contact_sheet(strips: list[Strip], title: str, note: str = "") -> Image.Image:
    """One tile a chunk with its time and words; several videos one above the other, chunk by chunk.

    The user's words stand in colour on the frame of their tile, a given chunk says so.
    """
    height, width = strips[0].frames.shape[1:3]
    size = (
        (TILE // width * width, TILE // width * height) if width <= TILE else (TILE, TILE * height // width)
    )
    chunks = max(len(strip.words) for strip in strips)
    columns = min(COLUMNS, chunks)
    blocks = [range(at, min(at + columns, chunks)) for at in range(0, chunks, columns)]
    named = len(strips) > 1
    rows = [
        (strip, block, max((len(_lines(word)) for word in strip.words[block.start : block.stop]), default=0))
        for block in blocks
        for strip in strips
    ]
    titles = _wrap(title, columns * (size[0] + GAP) // 9)
    top = MARGIN + 20 * len(titles) + (HEAD if note else 0) + GAP
    heights = [HEAD * named + size[1] + HEAD + LINE * lines + 2 * GAP for *_, lines in rows]
    gaps = [GAP * named * (i % len(strips) == len(strips) - 1) for i in range(len(rows))]
    sheet = Image.new(
        "RGB",
        (2 * MARGIN + columns * (size[0] + GAP) - GAP, top + sum(heights) + sum(gaps) + MARGIN - GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(titles):
        draw.text((MARGIN, MARGIN + 20 * i), line, INK, _font(15, bold=True))
    draw.text((MARGIN, MARGIN + 20 * len(titles) + 2), note, FAINT, _font(12))
    y = top
    for (strip, block, lines), height_, gap in zip(rows, heights, gaps, strict=True):
        if named:
            draw.text((MARGIN, y), strip.name, INK, _font(13, bold=True))
        for column, chunk in enumerate(block):
            if chunk < len(strip.words):
                at = (MARGIN + column * (size[0] + GAP), y + HEAD * named)
                _tile(sheet, draw, at, size, strip.picture(chunk), strip.words[chunk], lines)
        y += height_ + gap
    return sheet


def enlarge(frames: np.ndarray) -> np.ndarray:
    """frames [F, H, W, 3] repeated by a whole factor, so that a tiny world can be watched."""
    factor = max(1, -(-WATCHABLE // min(frames.shape[1:3])))
    return frames.repeat(factor, 1).repeat(factor, 2)


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    size: tuple[int, int],
    picture: np.ndarray,
    words: ChunkWords,
    lines: int,
) -> None:
    (x, y), (width, height) = at, size
    forced = words.source == "forced"
    if forced:
        box = (x - 4, y - 4, x + width + 3, y + height + HEAD + LINE * lines + 3)
        draw.rounded_rectangle(box, 6, fill=ACCENT_PAPER, outline=ACCENT, width=2)
    enlarges = width >= picture.shape[1]
    resample = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
    sheet.paste(Image.fromarray(picture).resize(size, resample), (x, y))
    time = f"{words.start_seconds:.2f} s"
    draw.text((x + 2, y + height + 4), time, ACCENT if forced else FAINT, _font(11, bold=forced))
    said = {"forced": "your words", "own": "cut" if words.cut else ""}.get(words.source, "")
    if side := ", ".join(filter(None, ["given" if words.given else "", said])):
        font = _font(11, bold=forced)
        draw.text((x + width - 2, y + height + 4), side, ACCENT if forced else FAINT, font, anchor="ra")
    readable = len(_wrap(meaning(words.text) or words.text, TILE // 7))
    for i, line in enumerate(_lines(words)):
        colour = INK if i < readable else FAINT
        draw.text((x + 2, y + height + HEAD + LINE * i), line, colour, _font(12))


def _lines(words: ChunkWords) -> list[str]:
    """What is written below a tile: what action lines mean and then the lines themselves; or the words."""
    lines = _wrap("\n".join(filter(None, [meaning(words.text), words.text])), TILE // 7)
    return [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + " ..."] if len(lines) > MAX_LINES else lines


def _wrap(text: str, characters: int) -> list[str]:
    return [piece for line in text.splitlines() for piece in textwrap.wrap(line, characters)]


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", name), size)

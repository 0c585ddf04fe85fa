"""Items and attention checks as blinded tasks: what a person sees is a function of (seed, rater, item).

Nothing that reaches the page names a system, a file or a check: items and videos have names that are hashes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from megatv.data.video import decode_video, probe, write_video
from megatv.eval.human.database import refuse_link
from megatv.eval.human.questions import judging, questions_of
from megatv.eval.human.study import Study
from megatv.eval.human.videos import Video, Videos

COARSE_PIXELS = 12
"""The longer side of a degraded copy has so many blocks."""
STILL_SECONDS = 0.75
"""A degraded copy shows a new picture only so often."""
CHECK_SECONDS = 8
"""A check is not longer than this."""


@dataclass(frozen=True)
class Item:
    """What a task is about.

    id        opaque name, the same for every rater
    name      of the video or pair, or of the check
    videos    one (pointwise) or two (pairwise), in the order of `systems`
    systems   names, in the order of `videos`; of a check: `intact`, `degraded`
    """

    id: str
    name: str
    videos: tuple[Video, ...]
    systems: tuple[str, ...]
    check: bool = False


def draw(*parts: object) -> int:
    """A number of 64 bits that depends on all parts and looks random; the same on every machine."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def make_items(study: Study, found: list[Videos]) -> list[Item]:
    """The items that people are asked about, in order of name."""
    names = [system.name for system in study.systems]
    if study.kind == "pairwise":
        left, right = found
        return [
            Item(_opaque(study, "pair", name), name, (left[name], right[name]), tuple(names)) for name in left
        ]
    return [
        Item(_opaque(study, system, name), name, (video,), (system,))
        for system, videos in zip(names, found, strict=True)
        for name, video in videos.items()
    ]


def make_checks(study: Study, items: list[Item], folder: Path, *, write: bool) -> list[Item]:
    """`study.checks` attention checks; `write`: make the degraded copies that `folder` lacks.

    A pairwise check shows a video beside its degraded copy, a pointwise one the copy alone.
    Raises ValueError when a copy cannot be written.
    """
    sources = sorted(items, key=lambda item: draw(study.seed, "check", item.id))
    checks = []
    for number in range(study.checks):
        source = sources[number % len(sources)]
        original = source.videos[draw(study.seed, "which", number) % len(source.videos)]
        name = f"check-{number}"
        copy = folder / f"{_opaque(study, name, original.video)}.mp4"
        refuse_link(folder)
        refuse_link(copy)
        if write and not copy.exists():
            _degrade(original, copy)
        degraded = Video(name, str(copy), original.prompt, original.caption, original.start, original.stop)
        intact = (original,) if study.kind == "pairwise" else ()
        systems = ("intact", "degraded") if intact else ("degraded",)
        checks.append(Item(_opaque(study, "check", name), name, (*intact, degraded), systems, check=True))
    return checks


def passed(study: Study, item: Item, rater: str, answers: dict[str, str]) -> bool:
    """Whether a check's answers saw the degraded copy: the other preferred, or the picture called poor."""
    assert item.check
    name = judging(study)
    value = answers[name]
    if study.kind == "pairwise":
        return oriented(study, item, rater, name, value) > 0
    return value in ("weak", "none")


def swapped(study: Study, rater: str, item: Item) -> bool:
    """Whether this rater sees the second system on the left."""
    return len(item.videos) == 2 and draw(study.seed, "side", rater, item.id) % 2 == 1


def shown(study: Study, rater: str, item: Item) -> tuple[int, ...]:
    """Indices into `item.videos` from left to right, as this rater sees them."""
    order = tuple(range(len(item.videos)))
    return order[::-1] if swapped(study, rater, item) else order


def oriented(study: Study, item: Item, rater: str, question: str, value: str) -> float:
    """An answer's score: above 0 prefers the first system (pairwise); 0 to 1, controls turned (pointwise)."""
    score = questions_of(study)[question].score(value)
    if study.kind == "pairwise":
        return -score if swapped(study, rater, item) else score
    return 1 - score if question == "correctness" and item.videos[0].control else score


def check_places(study: Study, rater: str, load: int) -> list[int]:
    """After how many items, one at least, this rater meets each check: spread over `load` items, jittered."""
    edges = np.linspace(1, max(1, load), study.checks + 1).astype(int)
    return [
        low + draw(study.seed, "place", rater, number) % max(1, high - low)
        for number, (low, high) in enumerate(pairwise(edges.tolist()))
    ]


def _opaque(study: Study, *parts: object) -> str:
    return f"{draw(study.seed, 'name', *parts):016x}"


def _degrade(original: Video, copy: Path) -> None:
    """A copy in coarse blocks that stutters: nobody who looks takes it for the better one."""
    info = probe(original.video)
    rate = min(30.0, info.rate or 16.0)
    scale = max(info.width, info.height) / COARSE_PIXELS
    rows, columns = (max(2, round(side / scale)) for side in (info.height, info.width))
    frames = decode_video(original.video, width=columns, height=rows, fps=rate)[: int(CHECK_SECONDS * rate)]
    held = np.arange(len(frames)) // max(1, round(STILL_SECONDS * rate)) * max(1, round(STILL_SECONDS * rate))
    size = 2 * max(1, round(scale / 2))
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=copy.parent, prefix=".") as made:  # a name that nobody has put a link at
            write_video(Path(made, copy.name), frames[held].repeat(size, 1).repeat(size, 2), fps=rate)
            os.replace(Path(made, copy.name), copy)
    except OSError as error:
        raise ValueError(f"{copy}: cannot be written ({error.strerror}); choose another database") from None

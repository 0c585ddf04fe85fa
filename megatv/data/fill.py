"""Filling rows with examples of unequal needs, by numbers alone: first-fit decreasing over classes.

An example's class is what it needs of a row: so many chunks, and so many quarters of one example's share of
the text. Classes are numbered from the largest need to the smallest, so that filling walks them upwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNITS = 4
"""Parts of an example's share of the text in which needs are counted; finer ones hardly fill rows better."""


@dataclass(frozen=True)
class Part:
    """`each` examples of one class in every row of a pattern, after the `used` of the patterns before.

    start, size  the class's examples among all that are sorted by class
    units        of text that each of them needs
    """

    start: int
    size: int
    used: int
    each: int
    units: int


@dataclass(frozen=True)
class Pattern:
    """`repeats` rows with the same parts."""

    repeats: int
    parts: tuple[Part, ...]


def class_count(latents: int) -> int:
    """Number of classes for examples of 1 .. `latents` chunks and 1 .. UNITS units."""
    return latents * UNITS


def class_of(chunks: np.ndarray, units: np.ndarray, latents: int) -> np.ndarray:
    """int64 [n]: the classes of examples of `chunks` (1 .. latents) and `units` (1 .. UNITS)."""
    return (latents - np.asarray(chunks, np.int64)) * UNITS + UNITS - units


def needs_of(kind: int, latents: int) -> tuple[int, int]:
    """(chunks, units) of a class."""
    return latents - kind // UNITS, UNITS - kind % UNITS


def fill(counts: np.ndarray, start: int, latents: int, slots: int) -> list[Pattern]:
    """Rows with room for `slots` of the largest examples that use every example once.

    counts: int [classes], the examples of each class; the first of them all is number `start`.
    """
    left = counts.tolist()
    starts = (start + np.cumsum(counts) - counts).tolist()
    needs = [needs_of(kind, latents) for kind in range(len(left))]
    patterns = []
    while kinds := [kind for kind, number in enumerate(left) if number]:
        chunks, units, row = slots * latents, slots * UNITS, []
        for kind in kinds:
            each = min(left[kind], chunks // needs[kind][0], units // needs[kind][1])
            if each:
                row.append((kind, each))
                chunks -= each * needs[kind][0]
                units -= each * needs[kind][1]
        repeats = min(left[kind] // each for kind, each in row)
        parts = []
        for kind, each in row:
            used = int(counts[kind]) - left[kind]
            parts.append(Part(starts[kind], int(counts[kind]), used, each, needs[kind][1]))
            left[kind] -= repeats * each
        patterns.append(Pattern(repeats, tuple(parts)))
    return patterns

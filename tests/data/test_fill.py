"""Filled rows use every example once, hold no more than their room, and are nearly full."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatv.data.fill import UNITS, class_count, class_of, fill, needs_of


@given(st.integers(1, 30))
def test_classes_are_numbered_from_the_largest_need(latents):
    needs = [needs_of(kind, latents) for kind in range(class_count(latents))]
    assert needs[0] == (latents, UNITS) and needs == sorted(needs, reverse=True)
    chunks, units = np.array(needs).T
    assert class_of(chunks, units, latents).tolist() == list(range(class_count(latents)))


@given(
    latents=st.integers(1, 26),
    slots=st.integers(1, 5),
    start=st.integers(0, 99),
    seed=st.integers(0, 99),
    n=st.integers(0, 400),
)
def test_rows_hold_every_example_once_and_never_too_much(latents, slots, start, seed, n):
    rng = np.random.default_rng(seed)
    chunks, units = rng.integers(1, latents + 1, n), rng.integers(1, UNITS + 1, n)
    counts = np.bincount(class_of(chunks, units, latents), minlength=class_count(latents))
    starts = start + np.cumsum(counts) - counts
    patterns = fill(counts, start, latents, slots)
    used = np.zeros(class_count(latents), int)
    for pattern in patterns:
        needs = []
        for part in pattern.parts:
            kind = int(np.flatnonzero((starts == part.start) & (counts > 0))[0])
            assert part.size == counts[kind] and part.used == used[kind]
            assert part.units == needs_of(kind, latents)[1]
            used[kind] += pattern.repeats * part.each
            needs += [needs_of(kind, latents)] * part.each
        assert sum(c for c, _ in needs) <= slots * latents and sum(u for _, u in needs) <= slots * UNITS
    assert used.tolist() == counts.tolist()
    assert sum(p.repeats for p in patterns) <= -(-n // slots)  # never more rows than one place an example


def test_short_clips_share_rows():
    """Clips of 1 to 26 chunks, uniform: rows with room for one are 97 % full, alone they would be 52 %."""
    chunks = np.random.default_rng(0).integers(1, 27, 10_000)
    counts = np.bincount(class_of(chunks, np.array(1), 26), minlength=class_count(26))
    rows = sum(p.repeats for p in fill(counts, 0, 26, 1))
    assert chunks.sum() / 10_000 / 26 < 0.53 and chunks.sum() / rows / 26 > 0.97

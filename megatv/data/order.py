"""Which examples share a row, and when its turn comes: functions of (seed, row number), no list of an epoch.

A row has room for `examples_per_row` examples of full length, and short ones share that room
(`megatv.data.fill`). How many rows an epoch has, and what kinds of examples meet in a row, is a property of
the set; which examples meet, and when, is drawn anew in every epoch. The only list is `members`: all
examples, 4 bytes each, sorted by window and class, where a window is the shards that are read at the same
time: all, or `data.shuffle_shards` of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatv.config import Config
from megatv.data.bad import places_to_try
from megatv.data.balance import text_rows
from megatv.data.fill import UNITS, Pattern, class_count, class_of, fill, needs_of
from megatv.data.format import REMEDY
from megatv.data.permutation import permuted, permuted_each

BLOCK = 1 << 20
"""Examples sorted at a time, so that sorting ten million takes little memory beside the members."""
SHARDS, WINDOWS, ROWS, MEMBERS = range(4)
"""What is permuted: a part of the permutation's key."""


@dataclass(frozen=True)
class Place:
    """An example in a row.

    index      its number in the shards
    epoch      which of its turns this is; decides its noise
    text_rows  the most that its text may take
    """

    index: int
    epoch: int
    text_rows: int


class RowOrder:
    """The rows of every epoch; row q belongs to epoch q // len(self).

    lengths      int [n, 2]: valid latents and bytes of text of every example; None: all are of full length
    shard_sizes  int [shards]: examples of every shard; they are numbered shard by shard

    Quality of the shuffle: without windows, every example may come at any time and beside any other. With
    them, an example only ever meets those of its window's shards, and windows come in another order in every
    epoch. On 12,500 shards of 80 examples, a step of 512 holds examples of 502 shards without windows, of 223
    with windows of 256 shards, and of 64 with windows of 64.
    """

    def __init__(
        self, lengths: np.ndarray | None, shard_sizes: np.ndarray, config: Config, bytes_per_token: float
    ) -> None:
        self._lengths, self._config, self._bytes_per_token = lengths, config, bytes_per_token
        self._seed, shards = config.run.seed, len(shard_sizes)
        window = config.data.shuffle_shards or shards
        self._window_of_shard = permuted(np.arange(shards), shards, self._seed, SHARDS) // window
        self._shard_ends = np.cumsum(shard_sizes)
        self._classes, windows = class_count(config.latents), -(-shards // window)
        kinds = windows * self._classes
        self._members, counts = _sort(self._keys(shard_sizes, kinds), kinds)
        per_window = counts.reshape(windows, self._classes)
        self._window_ends = np.cumsum(per_window.sum(1))  # in members
        starts = self._window_ends - per_window.sum(1)
        filled = [
            fill(window_counts, start, config.latents, config.sequence.examples_per_row)
            for window_counts, start in zip(per_window, starts.tolist(), strict=True)
        ]
        self._window_rows = np.array([sum(p.repeats for p in patterns) for patterns in filled])
        self._window_firsts = np.cumsum(self._window_rows) - self._window_rows
        self._patterns = [pattern for patterns in filled for pattern in patterns]
        self._pattern_ends = np.cumsum([pattern.repeats for pattern in self._patterns])
        self._visits = functools.lru_cache(maxsize=2)(self._visit)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return int(self._pattern_ends[-1])

    def rows(self, numbers: Sequence[int]) -> list[list[Place]]:
        """The examples of these rows."""
        kinds = self._patterns_at(numbers)
        drawn = iter(
            permuted_each(
                (part.used + repeat * part.each + k, part.size, (self._seed, MEMBERS, epoch, part.start))
                for epoch, pattern, repeat in kinds
                for part in pattern.parts
                for k in range(part.each)
            )
        )
        rows = []
        for epoch, pattern, _ in kinds:
            starts = [part.start for part in pattern.parts for _ in range(part.each)]
            members = [int(self._members[start + next(drawn)]) for start in starts]
            budgets = self._budgets(pattern)
            rows.append([Place(i, epoch, budget) for i, budget in zip(members, budgets, strict=True)])
        return rows

    def substitutes(self, index: int) -> Iterator[int]:
        """`index`, then the examples of its window that fit in its place, scattered, every one once."""
        yield index  # nearly always the only one: what follows is a search
        window = self._window_of_shard[np.searchsorted(self._shard_ends, index, "right")]
        end = self._window_ends[window]
        start = self._window_ends[window - 1] if window else 0
        members = self._members[start:end]
        chunks, units = needs_of(int(self._class_of(slice(index, index + 1))[0]), self._config.latents)
        place = int(np.flatnonzero(members == index)[0])
        for candidate in itertools.islice(places_to_try(place, len(members)), 1, None):
            other = int(members[candidate])
            needs = needs_of(int(self._class_of(slice(other, other + 1))[0]), self._config.latents)
            if needs[0] <= chunks and needs[1] <= units:
                yield other

    def _patterns_at(self, numbers: Sequence[int]) -> list[tuple[int, Pattern, int]]:
        """Of each row its epoch, its pattern, and which of the pattern's rows it is."""
        epochs, firsts, places = [], [], []
        for number in numbers:
            epoch, place = divmod(number, len(self))
            visited, ends = self._visits(epoch)
            turn = int(np.searchsorted(ends, place, "right"))
            window, rows = int(visited[turn]), int(self._window_rows[visited[turn]])
            epochs.append(epoch)
            firsts.append(int(self._window_firsts[window]))
            places.append((place - int(ends[turn]) + rows, rows, (self._seed, ROWS, epoch, window)))
        found = []
        for epoch, first, inside in zip(epochs, firsts, permuted_each(places), strict=True):
            which = int(np.searchsorted(self._pattern_ends, first + inside, "right"))
            pattern = self._patterns[which]
            repeat = first + inside - (int(self._pattern_ends[which]) - pattern.repeats)
            found.append((epoch, pattern, repeat))
        return found

    def _visit(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows in the order in which this epoch visits them, and where in the epoch they end."""
        windows = len(self._window_rows)
        visited = permuted(np.arange(windows), windows, self._seed, WINDOWS, epoch)
        return visited, np.cumsum(self._window_rows[visited])

    def _budgets(self, pattern: Pattern) -> list[int]:
        """Text rows of each example: its full share while there are no more than shares, else by need."""
        units = [part.units for part in pattern.parts for _ in range(part.each)]
        if len(units) <= self._config.sequence.examples_per_row:
            return [self._config.text_rows_per_example] * len(units)
        return [self._config.text_rows * need // sum(units) for need in units]

    def _keys(self, shard_sizes: np.ndarray, kinds: int) -> np.ndarray:
        """[n]: window and class of every example as one number below `kinds`, in the smallest type for it."""
        keys = np.repeat(
            (self._window_of_shard * self._classes).astype(np.min_scalar_type(kinds)), shard_sizes
        )
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            block += self._class_of(slice(start, start + len(block))).astype(keys.dtype)
        return keys

    def _class_of(self, examples: slice) -> np.ndarray:
        """int64: the classes of a run of examples."""
        config = self._config
        if self._lengths is None:
            return np.zeros(examples.stop - examples.start, np.int64)
        chunks, words = self._lengths[examples].T
        if chunks.min() < 1 or chunks.max() > config.latents or words.min() < 0:
            raise ValueError(f"the shards' lengths.npy is damaged: it names examples of no length; {REMEDY}")
        share = config.text_rows_per_example
        if config.sequence.mode == "think2v" and config.sequence.think2v == "detailed_caption":
            words = np.full_like(words, share * self._bytes_per_token)  # lengths do not tell of that caption
        rows = np.minimum(text_rows(chunks, words, self._bytes_per_token), share)
        return class_of(chunks, np.ceil(rows * UNITS / share).astype(np.int64), config.latents)


def _sort(keys: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """uint32 [n]: 0 .. n-1 sorted by key, and int64 [kinds]: how many there are of each key.

    A counting sort in blocks: it needs the result and a few MB.
    """
    blocks = [(start, keys[start : start + BLOCK]) for start in range(0, len(keys), BLOCK)]
    counts = sum((np.bincount(block, minlength=kinds) for _, block in blocks), np.zeros(kinds, np.int64))
    free = np.cumsum(counts) - counts
    out = np.empty(len(keys), np.uint32)
    for start, block in blocks:
        order = np.argsort(block, kind="stable")
        here = np.bincount(block, minlength=kinds)
        rank = np.arange(len(block)) - np.repeat(np.cumsum(here) - here, here)
        out[np.repeat(free, here) + rank] = start + order
        free += here
    return out, counts

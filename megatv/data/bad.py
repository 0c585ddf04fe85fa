"""Samples that cannot be used: left out, remembered by place and reason, replaced by rule, up to a limit.

A replacement depends on nothing but the place in the epoch and on which samples are bad, so that ranks that
build the same rows choose the same one, and so does a resumed run. Nothing of it is state: a restarted run
meets the damage again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class BadSample:
    """index: its number in the shards; id: its own, or where it lies when that cannot be read.

    epoch: of a crop, of which others may be good; 0 where an example is the same in every epoch.
    """

    index: int
    id: str
    reason: str
    epoch: int = 0

    def __str__(self) -> str:
        return f"sample '{self.id}': {self.reason}"


class BadSamples:
    """The bad samples that are known here, at most `limit` of them. Bad crops of one clip count once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: dict[tuple[int, int], BadSample] = {}

    def __len__(self) -> int:
        return len({index for index, _ in tuple(self._known)})

    def __contains__(self, index: int) -> bool:
        """Whether anything is known against sample `index` of the shards."""
        return any(index == known for known, _ in tuple(self._known))

    def get(self, index: int, epoch: int = 0) -> BadSample | None:
        """What is known against sample `index` of the shards, in this epoch where it is a crop."""
        return self._known.get((index, epoch))

    def learn(self, bad: BadSample) -> None:
        """Note what another rank found."""
        self._known.setdefault((bad.index, bad.epoch), bad)

    def add(self, bad: BadSample) -> None:
        """Note what was found here. Raises ValueError with all that is known when it is too much."""
        self.learn(bad)
        if len(self) > self.limit:
            named = "; ".join(map(str, sorted(self._known.values())))
            raise ValueError(
                f"{len(self)} samples cannot be used and data.max_bad_samples is {self.limit}: mend "
                f"the data (tools/shards.py verify DIR checks it) or raise the limit. {named}"
            )


def places_to_try(place: int, n: int) -> Iterator[int]:
    """`place`, then every other place of an epoch of n once, in strides of about 0.618 n.

    The golden ratio scatters them, so a whole missing shard of examples stored side by side is left at once.
    """
    stride = max(1, round(n * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, n) != 1:
        stride += 1
    for k in range(n):
        yield (place + k * stride) % n

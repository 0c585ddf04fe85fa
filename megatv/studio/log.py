"""What a viewer must hear to know a session as it is: its messages in their order, without those outdated."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict

OUTDATES = {
    "words": ("token", "planned"),  # a chunk's words are settled
    "planned": ("planned",),
    "plan": ("plan",),
    "status": ("status",),
    "game": ("game",),
}
"""Which messages on the same chunk, or take, nobody needs after one of this kind."""

Key = tuple[int, int | None, str]


class Log:
    """Written by one thread, read by others. Messages are numbered; numbers of dropped ones are left out.

    Whoever read up to a number goes on from there. What is dropped in the meantime he misses, and does not
    need: the log holds no more than its takes' chunks, words and frames, however long the session lasts.
    """

    def __init__(self) -> None:
        self.end = 0
        self._numbers: list[int] = []
        self._messages: dict[int, str | bytes] = {}
        self._places: defaultdict[Key, list[int]] = defaultdict(list)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, message: str | bytes, take: int, kind: str, chunk: int | None = None) -> None:
        """Append a message, and drop those that it outdates."""
        with self._lock:
            for outdated in OUTDATES.get(kind, ()):
                self._drop((take, chunk, outdated))
            self._places[take, chunk, kind].append(self.end)
            self._numbers.append(self.end)
            self._messages[self.end] = message
            self.end += 1

    def forget(self, take: int) -> None:
        """Drop all of a take."""
        with self._lock:
            for key in [key for key in self._places if key[0] == take]:
                self._drop(key)

    def read(self, number: int, most: int) -> tuple[list[str] | bytes, int]:
        """What comes from `number` on, up to `most` texts or one binary message; and where to go on."""
        with self._lock:
            texts: list[str] = []
            first = bisect_left(self._numbers, number)
            for place in self._numbers[first : first + most]:
                message = self._messages[place]
                if isinstance(message, bytes):
                    return (texts, place) if texts else (message, place + 1)
                texts.append(message)
            whole = first + most >= len(self._numbers)
            return texts, self.end if whole else self._numbers[first + most]

    def _drop(self, key: Key) -> None:
        for number in self._places.pop(key, ()):
            del self._numbers[bisect_left(self._numbers, number)]
            del self._messages[number]

"""The toy world's controls: keys that are held down become the words of the next chunk."""

from __future__ import annotations

import time

from megatv.data.toy_pictures import TURN
from megatv.data.toy_world import Action, words


class Game:
    """A person at the keys of one take, in step with the clock.

    A key that was tapped between two chunks counts for the next one. A one-frame chunk is too short to press
    a key in (see `megatv.data.toy_world.Player`): there a tap waits for the chunk after it.
    """

    def __init__(self) -> None:
        self.held = self.tapped = Action()
        self._began: float | None = None

    def press(self, held: Action) -> None:
        """Note what is held down now; turn is -1, 0 or 1."""
        self.held = held
        self.tapped = Action(*(new or old for new, old in zip(held, self.tapped, strict=True)))

    def words(self, one_frame: bool) -> str:
        """The line that says what is held, or was tapped since the last chunk."""
        move, turn, *clicks = (h or t for h, t in zip(self.held, self.tapped, strict=True))
        return words(Action(move, TURN * turn, *([0, 0, 0] if one_frame else clicks)))

    def used(self, one_frame: bool) -> None:
        """A chunk has taken the words: what was tapped is done."""
        self.tapped = Action(0, 0, *self.tapped[2:]) if one_frame else Action()

    def wait(self, seconds: float) -> float:
        """How long to hold the chunk that starts at `seconds`, so that the world runs no faster than life."""
        now = time.monotonic()
        if self._began is None or now - seconds > self._began:
            self._began = now - seconds  # a model that is late does not hurry afterwards
        return self._began + seconds - now

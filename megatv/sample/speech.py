"""What one sequence says before one chunk, while it is being said.

Words may fill the context. `sample.when_full` says what ends then: with `end` the video, at the first word
for which there is no row ("EOS or context length exceeded", TV2TV section 2.3); with `bof` the words alone,
and the chunk is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatv.data.sequence import Ids
from megatv.data.tokenizer import Tokenizer
from megatv.sample.grammar import Walk


class Speech:
    """A model in text mode, from the EOF (or the prompt) before a chunk to its BOF.

    head      tokens before the words that the model has not seen yet
    words     those that surely stand there
    room      how many the model may add; None: it says nothing
    walk      the grammar that it keeps to, or None
    may_end   EOS may stand here: not before a given chunk, with which the sequence goes on
    spills    the model is heard even when the room is full (`sample.when_full: end`)

    said      the words so far                           open   whether the model is to pick the next token
    pending   the tokens that it has not seen yet        cut    whether the room has ended the words
    """

    def __init__(
        self,
        head: Sequence[int],
        words: Ids,
        room: int | None,
        walk: Walk | None = None,
        *,
        may_end: bool = True,
        spills: bool = False,
    ) -> None:
        self.said, self.pending = list(words), [*head, *words]
        self.open, self.cut = room is not None and (room > 0 or spills), False
        self.choices: list[int] | None = None
        self.may_end, self._spills = may_end, spills
        self._room, self._walk, self._told = room or 0, walk, len(words)
        if walk is not None:
            self._run_ahead(walk)

    @property
    def spilled(self) -> bool:
        """Whether the context is exceeded, which ends the sequence (TV2TV section 2.3)."""
        return self._spills and self.cut

    def flush(self) -> list[int]:
        """The pending tokens, for the pass that shows them to the model."""
        pending, self.pending = self.pending, []
        return pending

    def hear(self, token: int, tokenizer: Tokenizer) -> bool:
        """Note the token that the model picked, with all that it makes certain; whether it was said."""
        if token in (tokenizer.bof, tokenizer.eos):
            self.open = False
            return False
        if self._walk is None and self._room == 0:
            self.open, self.cut = False, True
            return False
        self._say(token)
        if self._walk is None:
            self._room -= 1
            self.open = self._room > 0 or self._spills
            self.cut = not self.open
        else:
            self._walk.follow(token)
            self._run_ahead(self._walk)
        return True

    def news(self, tokenizer: Tokenizer) -> str:
        """What was said since the last call; nothing while a letter's bytes are incomplete."""
        ids = self.said[: self._told], self.said
        before, after = (tokenizer.decode(part).rstrip("\ufffd") for part in ids)
        self._told = len(self.said)
        return after[len(before) :]

    def replace(self, words: Ids) -> int:
        """Say these words instead of all that was said; how many tokens the model has to forget."""
        seen = len(self.said) - len(self.pending)
        self.said, self.pending, self.open = list(words), list(words), False
        return seen

    def _say(self, token: int) -> None:
        self.said.append(token)
        self.pending.append(token)

    def _run_ahead(self, walk: Walk) -> None:
        """Say what is certain."""
        while len(choices := walk.choices()) == 1 and choices != [walk.bof]:
            self._say(choices[0])
            walk.follow(choices[0])
        self.choices = choices
        self.open = len(choices) > 1
        self.cut = not choices

"""The grammar of action lines: what may come next, and what surely does.

A model of a game says lines such as `(w, d, shift). 10, 0, 0, 0.` (`megatv.data.csgo_actions`; the lines of
the toy world are some of them). Many tokens of a line follow from those before them, and what is certain
needs no pass of the model. So a line is a graph: every way through it spells a line in the very tokens that
training saw.

Both split patterns of `megatv.data.tokenizer` begin a new piece where a field begins: at the space before a
number, and after a newline. No token therefore reaches from one field into the next, the tokens of a line are
those of its fields, and five small tries, one behind the other, spell all 2,826,240 lines. What ends a line
belongs to its last field, because Llama-3 has a token for `.` with a newline.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from itertools import combinations

from megatv.config import Config
from megatv.data.csgo_actions import KEYS, MOUSE_X, MOUSE_Y
from megatv.data.sequence import Ids
from megatv.data.tokenizer import Tokenizer

LINES = 4
"""The most lines of one chunk: one for each of its frames."""

HELD = [held for count in range(len(KEYS) + 1) for held in combinations(KEYS, count)]
FIELDS = (
    [f"({', '.join(held) or '.'})." for held in HELD],
    *([f" {value}," for value in values] for values in (MOUSE_X, MOUSE_Y, (0, 1))),
)
ENDS = [f" {right}." for right in (0, 1)]
"""`GameAction.words` in pieces: keys, mouse_x, mouse_y and left click, then the right click."""


class Node:
    """A place within the words. following: the tokens that may come there, and the places they lead to."""

    def __init__(self) -> None:
        self.following: dict[int, Node] = {}

    @functools.cached_property
    def rest(self) -> int:
        """The fewest tokens from here to the end of the words, BOF included."""
        return min((1 + node.rest for node in self.following.values()), default=0)


class ActionGrammar:
    """All lines in the tokens of `tokenizer`.

    last    start of a line that BOF follows     more    of one that BOF or another line (`last`) follows
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bof, self.eos = tokenizer.bof, tokenizer.eos
        fields = [[tuple(tokenizer.encode(text)) for text in texts] for texts in FIELDS]
        stop = {(*tokenizer.encode(text), self.bof): Node() for text in ENDS}
        self.last = _line(fields, stop)
        goes_on = {tuple(tokenizer.encode(text + "\n")): self.last for text in ENDS}
        self.more = _line(fields, stop | goes_on)


@functools.lru_cache(maxsize=4)
def action_grammar(tokenizer: Tokenizer) -> ActionGrammar:
    """The grammar of this tokenizer, built once (about a tenth of a second)."""
    return ActionGrammar(tokenizer)


class Walk:
    """One way through the grammar: the words before a chunk.

    lines     how many there may be
    room      tokens that they may take: a line begins, and goes on, only in ways that let it end within them
    may_end   EOS may stand in place of the first line; BOF never does, since every frame has its line
    """

    def __init__(self, grammar: ActionGrammar, lines: float, room: int, *, may_end: bool) -> None:
        self.bof = grammar.bof
        self._grammar, self._lines, self._room = grammar, lines, room
        self._node = grammar.more if lines > 1 else grammar.last
        self._start = self._node if may_end else None

    def choices(self) -> list[int]:
        """The tokens that may come next: one if it is certain, none if no line fits."""
        following = self._node.following
        found = [token for token, node in following.items() if node.rest <= self._room]
        return [*found, self._grammar.eos] if found and self._node is self._start else found

    def follow(self, token: int) -> None:
        """Go on behind a word, one of the choices."""
        self._node, self._start = self._node.following[token], None
        self._room -= 1
        if self._node is self._grammar.last:
            self._lines -= 1
            if self._lines > 1:
                self._node = self._grammar.more


def _line(fields: Iterable[Iterable[Ids]], endings: Mapping[Ids, Node]) -> Node:
    node = _trie(endings)
    for field in reversed(list(fields)):
        node = _trie(dict.fromkeys(field, node))
    return node


def _trie(ways: Mapping[Ids, Node]) -> Node:
    """ways: tokens of every alternative, none the beginning of another, and where it leads to."""
    root = Node()
    for (*path, last), end in ways.items():
        node = root
        for token in path:
            node = node.following.setdefault(token, Node())
        node.following[last] = end
    return root


def says_actions(config: Config) -> bool:
    """Whether a model's words are surely action lines: it plans in one a frame, or samples by them."""
    return config.sequence.think2v == "frame_actions" or config.sample.grammar == "actions"

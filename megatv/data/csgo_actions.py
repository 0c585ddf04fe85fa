"""The controller of CS:GO: the 51-value action vector of Pearce and Zhu's recordings, and its words.

    11 keys (0 or 1) | left click | right click | mouse_x one-hot of 23 | mouse_y one-hot of 15

The order and the mouse's steps are those of the code that wrote the files (Counter-Strike_Behavioural_Cloning
`config.py`, `actions_to_onehot`; the comment beside `n_keys` there names the keys in another order). The
words are those of TV2TV section 3.2: `(w, d, shift). 10, 0, 0, 0.`, and `(.). -60, 0, 0, 0.` without a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import numpy as np

MEANINGS = {
    **{"w": "forward", "a": "step left", "s": "back", "d": "step right", "space": "jump", "ctrl": "crouch"},
    **{"shift": "walk", "1": "weapon 1", "2": "weapon 2", "3": "weapon 3", "r": "reload"},
}
"""What each key does, as the game has it from the start."""
KEYS = tuple(MEANINGS)
MAX_LINE = 100
"""Characters; no line is so long."""
_X, _Y = (2, 4, 10, 20, 30, 60, 100, 200, 300, 500, 1000), (2, 4, 10, 20, 50, 100, 200)
MOUSE_X = (*(-step for step in reversed(_X)), 0, *_X)
"""Horizontal mouse movement in one frame, in the mouse's counts; one of 23 steps."""
MOUSE_Y = (*(-step for step in reversed(_Y)), 0, *_Y)
"""Vertical, one of 15."""
CLICKS_AT = len(KEYS)
MOUSE_X_AT = CLICKS_AT + 2
MOUSE_Y_AT = MOUSE_X_AT + len(MOUSE_X)
ACTION_VALUES = MOUSE_Y_AT + len(MOUSE_Y)
_PARTS = {
    "keys": slice(0, CLICKS_AT),
    "clicks": slice(CLICKS_AT, MOUSE_X_AT),
    "mouse_x": slice(MOUSE_X_AT, MOUSE_Y_AT),
    "mouse_y": slice(MOUSE_Y_AT, ACTION_VALUES),
}


class GameAction(NamedTuple):
    """What the controller does in one frame. keys: those held, in the vector's order; clicks are 0 or 1."""

    keys: tuple[str, ...] = ()
    mouse_x: int = 0
    mouse_y: int = 0
    left: int = 0
    right: int = 0

    def words(self) -> str:
        """One line as the paper prints it: keys, mouse_x, mouse_y, left click, right click."""
        return f"({', '.join(self.keys) or '.'}). {self.mouse_x}, {self.mouse_y}, {self.left}, {self.right}."

    def meaning(self) -> str:
        """The same for people: `forward, turn right 10`. The studio's page (actions.js) says it likewise."""
        turn, look = "left" if self.mouse_x < 0 else "right", "up" if self.mouse_y < 0 else "down"
        said = [
            *(MEANINGS[key] for key in self.keys),
            *([f"turn {turn} {abs(self.mouse_x)}"] if self.mouse_x else []),
            *([f"look {look} {abs(self.mouse_y)}"] if self.mouse_y else []),
            *(["shoot"] if self.left else []),
            *(["right click"] if self.right else []),
        ]
        return ", ".join(said) or "stand still"


def decode_action(vector: np.ndarray) -> GameAction:
    """The action of one vector of 51 numbers.

    Raises ValueError with the part that cannot be: another length, a value that is neither 0 nor 1, a mouse
    movement that is not exactly one step.
    """
    if vector.shape != (ACTION_VALUES,):
        raise ValueError(f"has the shape {list(vector.shape)} instead of [{ACTION_VALUES}]")
    for name, part in _PARTS.items():
        values = vector[part]
        if not ((values == 0) | (values == 1)).all():
            wrong = values[(values != 0) & (values != 1)][0]
            raise ValueError(f"has {wrong:g} among its {name}, where only 0 and 1 can be")
        if name.startswith("mouse") and values.sum() != 1:
            raise ValueError(f"says {int(values.sum())} steps of {name} instead of exactly one")
    left, right = vector[_PARTS["clicks"]].astype(int).tolist()
    return GameAction(
        keys=tuple(key for key, held in zip(KEYS, vector[_PARTS["keys"]], strict=True) if held),
        mouse_x=MOUSE_X[int(vector[_PARTS["mouse_x"]].argmax())],
        mouse_y=MOUSE_Y[int(vector[_PARTS["mouse_y"]].argmax())],
        left=left,
        right=right,
    )


def encode_action(action: GameAction) -> np.ndarray:
    """float64 [51]: the vector of an action, the inverse of `decode_action`."""
    vector = np.zeros(ACTION_VALUES)
    vector[[KEYS.index(key) for key in action.keys]] = 1
    vector[CLICKS_AT : CLICKS_AT + 2] = action.left, action.right
    vector[MOUSE_X_AT + MOUSE_X.index(action.mouse_x)] = 1
    vector[MOUSE_Y_AT + MOUSE_Y.index(action.mouse_y)] = 1
    return vector


def chunk_words(actions: Iterable[GameAction]) -> str:
    """The words of one chunk: a line for each of its frames. The paper does not say what joins the lines."""
    return "\n".join(action.words() for action in actions)


_LINE = re.compile(r"\(([^)]*)\)\. (0|-?[1-9][0-9]*), (0|-?[1-9][0-9]*), ([01]), ([01])\.")


def parse_line(text: str) -> GameAction | None:
    """The action of one line, the inverse of `GameAction.words`; None for any other text."""
    found = _LINE.fullmatch(text)
    if not found or len(text) > MAX_LINE:
        return None
    keys = () if found[1] == "." else tuple(found[1].split(", "))
    x, y, left, right = map(int, found.groups()[1:])
    action = GameAction(keys, x, y, left, right)
    known = set(keys) <= set(KEYS) and x in MOUSE_X and y in MOUSE_Y
    return action if known and keys == tuple(key for key in KEYS if key in keys) else None


def are_lines(text: str) -> bool:
    """Whether the words of a chunk are action lines and nothing else."""
    return all(parse_line(line) for line in text.split("\n"))


def meaning(text: str) -> str | None:
    """What the action lines of a chunk mean, one after another, without repeats; None for other words."""
    actions = [parse_line(line) for line in text.split("\n")]
    said = [action.meaning() for action in actions if action]
    return "; ".join(key for key, _ in groupby(said)) if len(said) == len(actions) else None

"""The toy world: a first-person game whose pictures can be read back into its state, exactly.

It stands where CS:GO stands in TV2TV section 3: the controller's words are the text, the frames are the
video. 32 x 32 pixels at 16 frames a second; one action is held for one chunk (one latent), that is for one
frame in the first chunk of a 49-frame group and for four frames in the others.

The rules of one frame, in this order (`step`):
    time     a jump takes 8 frames, a reload 8 frames and then the gun holds 4 rounds, a flash 2 frames
    keys     count on a chunk's first frame only: `w`/`s` move one depth towards or away from the pillars,
             `space` jumps from the ground, `r` reloads (and ends a flash), a left click fires when the gun
             is loaded and not reloading; `r` wins over a click
    mouse    turns by `mouse_x` pixels on every frame
The action comes before the picture: frame 0 already shows its effect, so the words of every chunk describe
what that chunk's own frames show.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from megatv.config import GROUP_FRAMES, GROUP_LATENTS, TEMPORAL_FACTOR
from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_pictures import DEPTHS, LEVEL_OF_PHASE, RING, ROUNDS, TURN, Ints, render
from megatv.types import Caption

META_PROMPT = "A player jumps and shoots among pillars."

PHASES = len(LEVEL_OF_PHASE)
"""Phases of a jump or a reload: 0 at rest, then 1 to 8, one a frame."""
FLASH_FRAMES = 2


class Action(NamedTuple):
    """What the controller holds during one chunk; fields may be arrays (then of equal shape).

    move    -1 `s`, 0, 1 `w`          turn    -2, 0, 2: `mouse_x`, pixels a frame
    jump, shoot, reload   0 or 1: `space`, left click, `r`
    """

    move: Ints = 0
    turn: Ints = 0
    jump: Ints = 0
    shoot: Ints = 0
    reload: Ints = 0

    @staticmethod
    def stack(actions: list[Action]) -> Action:
        """One action whose fields are int64 arrays over the list."""
        return Action(*np.array(actions, np.int64).reshape(-1, len(Action._fields)).T)


class State(NamedTuple):
    """The whole state behind one picture; every field an integer array, all of the same shape.

    yaw 0..62 in steps of 2     depth 0 (far) .. 7     jump, reload 0..8 (phases)
    ammo 0..4 rounds            flash 0..2 (frames that the muzzle still flashes, this one included)
    """

    yaw: np.ndarray
    depth: np.ndarray
    jump: np.ndarray
    ammo: np.ndarray
    reload: np.ndarray
    flash: np.ndarray

    def at(self, index: Any) -> State:
        """The same state with every field indexed."""
        return State(*(field[index] for field in self))


@dataclass(frozen=True)
class Episode:
    """frames uint8 [F, 32, 32, 3]; actions: one a chunk; states: fields int64 [F], one a frame."""

    frames: np.ndarray
    actions: tuple[Action, ...]
    states: State

    def captions(self) -> tuple[Caption, ...]:
        """The words of every chunk, timed at the chunk's start."""
        return tuple(Caption(chunk_start_seconds(i), words(action)) for i, action in enumerate(self.actions))


def chunk_starts(frames: int) -> np.ndarray:
    """First frame of every chunk (0, 1, 5, .., 45, 49, 50, ..), then `frames`: int64 [chunks + 1]."""
    starts = [f for f in range(frames) if f % GROUP_FRAMES == 0 or (f % GROUP_FRAMES) % TEMPORAL_FACTOR == 1]
    return np.array([*starts, frames], np.int64)


def step(state: State, action: Action, key_frame: bool | np.ndarray) -> State:
    """The state one frame later. `key_frame`: whether this frame opens a chunk, so that keys count.

    All arguments may be arrays; they are broadcast together.
    """
    yaw, depth, jump, ammo, reload, flash = state
    ammo = np.where(reload == PHASES - 1, ROUNDS, ammo)
    jump = np.where(jump > 0, (jump + 1) % PHASES, 0)
    reload = np.where(reload > 0, (reload + 1) % PHASES, 0)
    flash = np.maximum(flash - 1, 0)

    depth = np.minimum(np.maximum(depth + np.where(key_frame, action.move, 0), 0), DEPTHS - 1)
    jump = np.where((jump == 0) & (action.jump == 1) & key_frame, 1, jump)
    reload = np.where((reload == 0) & (action.reload == 1) & key_frame, 1, reload)
    fires = (reload == 0) & (ammo > 0) & (action.shoot == 1) & key_frame
    flash = np.where(fires, FLASH_FRAMES, np.where(reload > 0, 0, flash))
    return State((yaw + action.turn) % RING, depth, jump, np.where(fires, ammo - 1, ammo), reload, flash)


def simulate(seed: int, groups: int = 1) -> Episode:
    """Play `groups` x 49 frames. The episode is a function of (seed, groups) alone."""
    rng = np.random.Generator(np.random.Philox(seed))
    yaw, depth, ammo = (
        int(draw * n) for draw, n in zip(rng.random(3), (RING // TURN, DEPTHS, ROUNDS), strict=True)
    )
    state = State(*np.array([TURN * yaw, depth, 0, 1 + ammo, 0, 0]))
    frames = groups * GROUP_FRAMES
    starts = chunk_starts(frames)
    draws = rng.random((groups * GROUP_LATENTS, len(Player.DRAWS)))
    player = Player()
    actions, states = [], []
    for draw, start, end in zip(draws.tolist(), starts[:-1], starts[1:], strict=True):
        named = dict(zip(Player.DRAWS, draw, strict=True))
        actions.append(player.act(state, named, one_frame=end - start == 1))
        for frame in range(start, end):
            state = step(state, actions[-1], frame == start)
            states.append(state)
    history = State(*np.array(states, np.int64).T)
    return Episode(render(*history), tuple(actions), history)


class Player:
    """Semi-Markov: keeps a move and a turn for 1 to 3 chunks; presses other keys when they have an effect.

    A one-frame chunk is too short to press a key in: there the player only moves and turns.
    """

    DRAWS = ("move", "move_for", "turn", "turn_for", "jump", "shoot", "reload")
    JUMPS, SHOOTS, RELOADS, RELOADS_EMPTY = 0.15, 0.25, 0.05, 0.6

    def __init__(self) -> None:
        self.move = self.turn = self.move_left = self.turn_left = 0

    def act(self, state: State, draw: dict[str, float], one_frame: bool) -> Action:
        """The next chunk's action, from the state before it and one uniform draw for each decision."""
        if self.move_left == 0:
            self.move, self.move_left = int(3 * draw["move"]) - 1, 1 + int(3 * draw["move_for"])
        if self.turn_left == 0:
            self.turn, self.turn_left = TURN * (int(3 * draw["turn"]) - 1), 1 + int(3 * draw["turn_for"])
        self.move_left -= 1
        self.turn_left -= 1
        if one_frame:
            return Action(self.move, self.turn, 0, 0, 0)
        ready = state.reload in (0, PHASES - 1)
        empty = state.ammo == 0 and state.reload == 0
        reload = ready and draw["reload"] < (self.RELOADS_EMPTY if empty else self.RELOADS)
        shoot = ready and not empty and not reload and draw["shoot"] < self.SHOOTS
        jump = state.jump in (0, PHASES - 1) and draw["jump"] < self.JUMPS
        return Action(self.move, self.turn, int(jump), int(shoot), int(reload))


def words(action: Action) -> str:
    """One line in the grammar of CS:GO actions: `(w, space). 2, 0, 1, 0.`; no keys: `(.). 0, 0, 0, 0.`

    Keys, then mouse_x, mouse_y (always 0 here), left click, right click (always 0 here).
    """
    held = {"w": action.move == 1, "s": action.move == -1, "space": action.jump, "r": action.reload}
    keys = ", ".join(key for key in held if held[key]) or "."
    return f"({keys}). {action.turn}, 0, {action.shoot}, 0."


ACTIONS = tuple(Action(*fields) for fields in product((-1, 0, 1), (-TURN, 0, TURN), (0, 1), (0, 1), (0, 1)))
"""Every action of this world."""
_ACTION_OF_WORDS = {words(action): action for action in ACTIONS}


def parse_words(text: str) -> Action | None:
    """The action that `text` says, or None unless it is exactly one valid line of this world."""
    return _ACTION_OF_WORDS.get(text)

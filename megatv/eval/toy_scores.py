"""Scores of generated toy-world videos: do the pictures obey the words, and are they this world's pictures?

They take what the reader saw (`megatv.eval.toy_world`) in V videos and the words of the videos' chunks. The
intervention score follows TV2TV section 3.3: 1 done, 0 not done, 0.5 unsure, only where the action is
possible. Its rate without intervention is the same score on videos that were left alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from megatv.config import TEMPORAL_FACTOR
from megatv.data.toy_pictures import LEVEL_OF_PHASE, RISE
from megatv.data.toy_world import (
    ACTIONS,
    FLASH_FRAMES,
    Action,
    State,
    chunk_starts,
    parse_words,
    step,
    words,
)
from megatv.eval.toy_world import Reading

INTERVENTIONS = {
    "jump": Action(jump=1),
    "left_click": Action(shoot=1),
    "reload": Action(reload=1),
    "backward": Action(move=-1),
}
"""The four actions of TV2TV section 3.3, each alone and without turning."""

JUMP_PIXELS = 4
"""Rise of the camera that counts as a jump."""
RELOAD_FRAMES = 3
"""Frames with a lowered gun, of a chunk's four, that count as a reload."""

SHOWN_BY = {
    "turn": ("yaw",),
    "move": ("depth",),
    "jump": ("jump",),
    "shoot": ("flash", "ammo"),
    "reload": ("reload",),
}
"""The components of the state in which the effect of an action is seen."""


def intervention_words(name: str) -> str:
    """The exact line that orders one of INTERVENTIONS and nothing else."""
    return words(INTERVENTIONS[name])


def possible(states: State, name: str, chunk: int) -> np.ndarray:
    """bool [V]: the action would show in `chunk`, judged from the frame before it. states: fields [V, F].

    A jump needs the ground, a shot a round and a raised gun, a reload a raised gun, a step backward room.
    """
    before = states.at(np.s_[:, _frames(states, chunk).start - 1])
    return {
        "jump": before.jump == 0,
        "left_click": (before.ammo > 0) & (before.reload == 0),
        "reload": before.reload == 0,
        "backward": before.depth > 0,
    }[name]


def shown(states: State, name: str, chunk: int) -> np.ndarray:
    """bool [V]: the pictures show the action. states: fields [V, F].

    jump        the camera rises by 4 pixels or more in this chunk or the next
    left_click  the muzzle flashes and the chunk ends with one round less
    reload      the gun is lowered in 3 of the 4 frames or more
    backward    the chunk ends at a lesser depth
    """
    frames = _frames(states, chunk)
    before, during = states.at(np.s_[:, frames.start - 1]), states.at(np.s_[:, frames])
    height = RISE[LEVEL_OF_PHASE[states.jump]]
    rise = height[:, frames.start : frames.stop + TEMPORAL_FACTOR].max(1) - height[:, frames.start - 1]
    return {
        "jump": rise >= JUMP_PIXELS,
        "left_click": (during.flash > 0).any(1) & (during.ammo[:, -1] == before.ammo - 1),
        "reload": (during.reload > 0).sum(1) >= RELOAD_FRAMES,
        "backward": during.depth[:, -1] < before.depth,
    }[name]


def residual_limit(real: Reading) -> float:
    """The residual that 1 % of real frames exceed. real: true episodes as the codec decodes them."""
    return float(np.quantile(real.residual, 0.99))


def intervention_scores(reading: Reading, name: str, chunk: int, limit: float) -> np.ndarray:
    """float64 [V]: 1 done, 0 not done, 0.5 unsure, NaN where the action was not possible.

    Unsure: the chunk's frames are further from every valid picture, on average, than `limit`
    (see `residual_limit`), so that their reading says little.
    """
    unsure = reading.residual[:, _frames(reading.states, chunk)].mean(1) > limit
    score = np.where(unsure, 0.5, shown(reading.states, name, chunk))
    return np.where(possible(reading.states, name, chunk), score, np.nan)


def share(values: np.ndarray) -> dict[str, float]:
    """{mean, low, high, n} of scores between 0 and 1, NaNs left out; low and high: Wilson 95 % interval."""
    kept = values[~np.isnan(values)]
    low, high = wilson(float(kept.sum()), len(kept))
    return {"mean": float(kept.mean()) if len(kept) else math.nan, "low": low, "high": high, "n": len(kept)}


def rate(values: np.ndarray) -> dict[str, float | None]:
    """`share` of bools or scores; its mean is None where nothing could be judged, since JSON has no NaN."""
    found = share(values.astype(float))
    return {**found, "mean": found["mean"] if found["n"] else None}


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z, p = 1.959964, successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def valid_lines(lines: Sequence[Sequence[str]]) -> np.ndarray:
    """bool, one entry a chunk: its words are exactly one valid action line. lines: V lists of words."""
    return np.array([parse_words(line) is not None for video in lines for line in video], bool)


def words_followed(states: State, lines: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Step the world by each chunk's words from the state read before it; compare with what the chunk shows.

    states: fields [V, F]; lines: V lists with the words of every chunk. The first chunk, before which there
    is nothing to read, and chunks without a valid line are left out.
    Returns bool arrays. `turn`, `move`, `jump`, `shoot` and `reload` have one entry for each chunk whose
    words have that effect: every frame shows it. `all` has one for each chunk: every frame is in exactly the
    state that the words lead to.
    """
    assert len(lines) == len(states.yaw), (len(lines), len(states.yaw))
    starts = chunk_starts(states.yaw.shape[1])
    parsed = [[parse_words(line) for line in video] for video in lines]
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*SHOWN_BY, "all")}
    for chunk in range(1, len(starts) - 1):
        rows = [row for row, video in enumerate(parsed) if video[chunk] is not None]
        action = Action.stack([action for video in parsed if (action := video[chunk]) is not None])
        before = states.at((rows, starts[chunk] - 1))
        first = expected = step(before, action, True)
        equal = _equal(expected, states.at((rows, starts[chunk])))
        for frame in range(starts[chunk] + 1, starts[chunk + 1]):
            expected = step(expected, action, False)
            equal &= _equal(expected, states.at((rows, frame)))
        asked = {
            "turn": first.yaw != before.yaw,
            "move": first.depth != before.depth,
            "jump": first.jump == 1,
            "shoot": first.flash == FLASH_FRAMES,
            "reload": first.reload == 1,
        }
        for name, components in SHOWN_BY.items():
            seen = np.all(equal[[State._fields.index(component) for component in components]], axis=0)
            found[name].append(seen[asked[name]])
        found["all"].append(np.all(equal, axis=0))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def impossible_transitions(states: State, starts: np.ndarray | None = None) -> np.ndarray:
    """bool [V, F-1]: no action of this world leads from one frame to the next. states: fields [V, F].

    starts: first frames of the chunks, where keys count; those of whole groups by default. Videos made in
    windows of one group have others (`megatv.sample.timeline`).
    """
    frames = states.yaw.shape[1]
    opens_chunk = np.isin(np.arange(1, frames), chunk_starts(frames) if starts is None else starts)
    before, after = states.at(np.s_[:, :-1]), states.at(np.s_[:, 1:])
    reached = [_equal(step(before, action, opens_chunk), after).all(0) for action in ACTIONS]
    return ~np.any(reached, axis=0)


def _equal(a: State, b: State) -> np.ndarray:
    """bool [6, ...]: which components agree."""
    return np.stack([left == right for left, right in zip(a, b, strict=True)])


def _frames(states: State, chunk: int) -> slice:
    """The frames of a four-frame chunk. Raises ValueError for any other chunk."""
    starts = chunk_starts(states.yaw.shape[1]).tolist()
    if not 0 < chunk < len(starts) - 1 or starts[chunk + 1] - starts[chunk] != TEMPORAL_FACTOR:
        raise ValueError(
            f"chunk {chunk} of {len(starts) - 1} cannot be scored: choose one of {TEMPORAL_FACTOR} frames, "
            "which the first of every group is not"
        )
    return slice(starts[chunk], starts[chunk + 1])

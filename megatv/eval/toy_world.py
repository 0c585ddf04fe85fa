"""Reading the toy world's pictures: every frame becomes the state that explains it best, and a residual.

First the view: the nearest of 1,280 templates where neither gun nor bar is drawn (one matrix product). Then,
before that view, the nearest of six gun pictures and of five bars. Two frames in a row tell the phase of a
jump or a reload, which no single frame can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from megatv.data.toy_pictures import (
    BARS,
    FLASHING,
    GUN_BOX,
    GUN_INK,
    GUN_OPAQUE,
    HUD_BOX,
    LEVEL_OF_PHASE,
    SIZE,
    TURN,
    VIEWS,
    compose,
)
from megatv.data.toy_world import FLASH_FRAMES, State

READER_LIMIT = 0.995
"""Share of true frames that the reader must get right, for each component, before its scores count."""
FRAMES_AT_ONCE = 1024


@dataclass(frozen=True)
class Reading:
    """What V videos of F frames show.

    states     fields int64 [V, F]
    residual   float32 [V, F]: mean squared error to the picture of that state, in squared grey levels
    """

    states: State
    residual: np.ndarray

    @property
    def psnr(self) -> np.ndarray:
        """float32 [V, F] in dB, to the nearest valid picture; at most 58.9, rounding to uint8."""
        return 10 * np.log10(255**2 / np.maximum(self.residual, 1 / 12))


def read_states(frames: np.ndarray) -> Reading:
    """Read uint8 [V, F, 32, 32, 3] videos, each from its own start (frame 0 of an episode)."""
    assert frames.ndim == 5 and frames.shape[2:] == (SIZE, SIZE, 3) and frames.dtype == np.uint8, frames.shape
    flat = frames.reshape(-1, *frames.shape[2:])
    pieces = [_read(flat[at : at + FRAMES_AT_ONCE]) for at in range(0, len(flat), FRAMES_AT_ONCE)]
    yaw, depth, level, ammo, gun, residual = (
        np.concatenate(part).reshape(frames.shape[:2]) for part in zip(*pieces, strict=True)
    )
    flashes = gun == FLASHING
    opened = flashes & ~np.pad(flashes, ((0, 0), (1, 0)))[:, :-1]
    fired = opened | (np.diff(ammo, axis=1, prepend=0) < 0)
    flash = np.where(flashes, np.where(fired, FLASH_FRAMES, 1), 0)
    reload = _phases(np.where(flashes, 0, gun))
    return Reading(State(yaw, depth, _phases(level), ammo, reload, flash), residual.astype(np.float32))


def reader_accuracy(reading: Reading, truth: State) -> dict[str, float]:
    """Share of frames read right, by component of the state. truth: fields [V, F]."""
    return {
        name: float(np.mean(read == true))
        for name, read, true in zip(State._fields, reading.states, truth, strict=True)
    }


def check_reader(frames: np.ndarray, truth: State) -> Reading:
    """Read true episodes as the codec decodes them, and refuse scores that would measure the codec.

    Raises ValueError when any component is read right in fewer than 99.5 % of the frames.
    """
    reading = read_states(frames)
    accuracy = reader_accuracy(reading, truth)
    worst = min(accuracy, key=lambda name: accuracy[name])
    if accuracy[worst] < READER_LIMIT:
        raise ValueError(
            f"the toy world's {worst} is read right in only {accuracy[worst]:.2%} of true frames after "
            f"the codec, scores need {READER_LIMIT:.1%}: train the codec longer"
        )
    return reading


def _read(frames: np.ndarray) -> tuple[np.ndarray, ...]:
    """(yaw, depth, jump's level, ammo, gun picture, residual), each [n], of uint8 [n, 32, 32, 3]."""
    pixels = frames.astype(np.float32)
    templates, norms = _view_templates()
    view = np.argmin(norms - 2 * pixels.reshape(len(frames), -1) @ templates.T, axis=1)
    turn, depth, level = np.unravel_index(view, VIEWS.shape[:3])

    behind = VIEWS[turn, depth, level][:, *GUN_BOX]
    guns = np.where(GUN_OPAQUE[:, None, :, :, None], GUN_INK[:, None], behind)
    gun = _nearest(pixels[:, *GUN_BOX], guns)
    ammo = _nearest(pixels[:, *HUD_BOX], BARS)
    picture = compose(turn * TURN, depth, level, ammo, gun)
    residual = ((pixels - picture) ** 2).mean((1, 2, 3))
    return turn * TURN, depth, level, ammo, gun, residual


def _nearest(pixels: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Index of the candidate with the least squared error to each of pixels [n, rows, columns, 3]."""
    return np.argmin([((pixels - candidate) ** 2).sum((1, 2, 3)) for candidate in candidates], axis=0)


@cache
def _view_templates() -> tuple[np.ndarray, np.ndarray]:
    """float32 [1280, 3072] views, zero where gun or bar may be drawn, and their squared norms [1280]."""
    templates = VIEWS.reshape(-1, *VIEWS.shape[3:]).astype(np.float32)
    templates[:, *GUN_BOX] = templates[:, *HUD_BOX] = 0
    templates = templates.reshape(len(templates), -1)
    return templates, (templates**2).sum(1)


@cache
def _phase_of_pair() -> np.ndarray:
    """int64 [5, 5]: the phase that two levels in a row show.

    A pair that no jump passes through is taken for the rising phase of its second level: the step to it is
    then impossible, and what follows is judged from there.
    """
    rising = np.unique(LEVEL_OF_PHASE, return_index=True)[1]
    phases = np.tile(rising, (len(rising), 1))
    phases[LEVEL_OF_PHASE[:-1], LEVEL_OF_PHASE[1:]] = np.arange(1, len(LEVEL_OF_PHASE))
    return phases


def _phases(levels: np.ndarray) -> np.ndarray:
    """Phases int64 [V, F] from levels [V, F]; before the first frame everything is at rest."""
    before = np.pad(levels, ((0, 0), (1, 0)))[:, :-1]
    return _phase_of_pair()[before, levels]

"""Pictures of the toy world: a view, the gun before it, a bar with the rounds.

Eight coloured pillars stand on a ring of 64 pixels of which 32 are in view. Coming closer makes them taller
and brighter, a jump raises the camera (everything sinks in the picture), a reload lowers the gun. Everything
moves by whole pixels: with half pixels, a quarter of the depths could not be read back even from true frames.
"""

from __future__ import annotations

import numpy as np

Ints = int | np.ndarray
"""One value, or an integer array with one value for each of many worlds."""

SIZE = 32
RING = 64
TURN = 2
DEPTHS = 8
ROUNDS = 4
LEVEL_OF_PHASE = np.array([0, 1, 2, 3, 4, 4, 3, 2, 1])
"""How far a jump or a reload has gone in each phase. A picture shows the level, two in a row the phase."""
RISE = np.array([0, 2, 4, 5, 6])
SINK = np.array([0, 2, 4, 6, 8])
"""Pixels that the camera rises, and that the gun sinks, at each level."""

HUD_BOX = (slice(28, 32), slice(0, 13))
GUN_BOX = (slice(16, 32), slice(13, 29))
"""Rows and columns of the ammunition bar and of all that the gun and its flash may cover."""
FLASHING = len(SINK)
"""Gun picture of the muzzle flash; pictures 0..4 are the gun at the five levels."""

_PILLARS = np.array(
    [
        (230, 60, 50),
        (240, 150, 40),
        (245, 225, 70),
        (80, 200, 70),
        (60, 205, 205),
        (65, 100, 235),
        (165, 80, 220),
        (240, 120, 190),
    ],
    np.float64,
)
_GUN = (
    "..dddd..........",
    "..dmmd..........",
    "..dmmmd.........",
    "...dmmmd........",
    "...dmmmmd.......",
    "....dmmmmmd.....",
    "....dmmmmmmd....",
    ".....dhhmmmmd...",
    ".....dhhhhmmmd..",
    "......dhhhhmmd..",
)
_FLASH = (
    "...f............",
    ".f.f.f..........",
    "..fff...........",
    "ffwwwff.........",
    "..wwwf..........",
    ".ffwf.f.........",
)
_INK = {
    ".": (0, 0, 0),  # transparent
    "d": (25, 25, 30),
    "m": (60, 66, 84),
    "h": (150, 95, 45),
    "f": (255, 200, 30),
    "w": (255, 255, 235),
}


def _views() -> np.ndarray:
    """uint8 [32 yaws, 8 depths, 5 levels, 32, 32, 3]: the world without gun and bar."""
    yaw = TURN * np.arange(RING // TURN)[:, None, None, None, None]
    depth = np.arange(DEPTHS)[:, None, None, None]
    rise = RISE[:, None, None]
    row, column = np.arange(SIZE)[:, None], np.arange(SIZE)
    below = row - (SIZE // 2 + rise)  # rows below the horizon; negative above it
    sky = np.stack([150 + 3 * below, 200 + 2 * below, 235 + below], -1)
    floor = np.stack([70 + 5 * below, 62 + 4 * below, 55 + 3 * below], -1)
    ground = np.where((below < 0)[..., None], sky, floor)
    place = (yaw + column) % RING
    width = RING // len(_PILLARS)
    light = np.array([0, 1.1, 1.0, 1.0, 0.85, 0.7, 0, 0])[place % width]  # 0 where no pillar stands
    shade = light * (0.5 + 0.06 * depth)
    pillar = _PILLARS[place // width] * shade[..., None]
    stands = (light > 0) & (below >= -(3 + depth)) & (below < 3 + depth)
    return np.clip(np.where(stands[..., None], pillar, ground), 0, 255).astype(np.uint8)


def _guns() -> tuple[np.ndarray, np.ndarray]:
    """Six pictures of the gun box: bool [6, 16, 16] where opaque, uint8 [6, 16, 16, 3] colours."""
    blank = "." * len(_GUN[0])
    above = len(_FLASH)
    pictures = [(blank,) * (above + sink) + _GUN[: len(_GUN) - sink] for sink in SINK]
    pictures.append(_FLASH + _GUN)
    ink = np.array([[[_INK[c] for c in line] for line in lines] for lines in pictures], np.uint8)
    opaque = np.array([[[c != "." for c in line] for line in lines] for lines in pictures])
    return opaque, ink


def _bars() -> np.ndarray:
    """uint8 [5, 4, 13, 3]: a dark bar with one white pip a round."""
    bars = np.full((ROUNDS + 1, 4, 1 + 3 * ROUNDS, 3), 20, np.uint8)
    for rounds in range(ROUNDS + 1):
        for pip in range(rounds):
            bars[rounds, 1:3, 1 + 3 * pip : 3 + 3 * pip] = 255
    return bars


VIEWS = _views()
GUN_OPAQUE, GUN_INK = _guns()
BARS = _bars()


def compose(yaw: Ints, depth: Ints, level: Ints, ammo: Ints, gun: Ints) -> np.ndarray:
    """Pictures uint8 [..., 32, 32, 3] from integer arrays [...] of equal shape.

    level: of the jump; gun: level of the reload, or FLASHING.
    """
    frames = VIEWS[np.asarray(yaw) // TURN, depth, level]
    frames[..., *GUN_BOX, :] = np.where(GUN_OPAQUE[gun][..., None], GUN_INK[gun], frames[..., *GUN_BOX, :])
    frames[..., *HUD_BOX, :] = BARS[ammo]
    return frames


def render(yaw: Ints, depth: Ints, jump: Ints, ammo: Ints, reload: Ints, flash: Ints) -> np.ndarray:
    """Pictures uint8 [..., 32, 32, 3] of states: integer arrays [...] in the order of `toy_world.State`."""
    gun = np.where(np.asarray(flash) > 0, FLASHING, LEVEL_OF_PHASE[reload])
    return compose(yaw, depth, LEVEL_OF_PHASE[jump], ammo, gun)

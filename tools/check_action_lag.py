"""Measure which action belongs to which frame of CS:GO recordings: the lag between the mouse and the picture.

    python tools/check_action_lag.py EPISODE_OR_FOLDER ... [--max-lag 8]

Turning with the mouse moves the whole picture sideways, so mouse_x and the horizontal flow of the picture go
together at one lag only. Lag L means that the change from frame f - 1 to frame f comes of action f - L; it is
what tools/make_shards.py takes as --action-lag. A few episodes are enough. Exit code 1: no lag stands out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatv.data.csgo_episode import HEIGHT, WIDTH, Episode
from megatv.log import main_guard, progress

import numpy as np

MAX_LAG = 8
BAND = slice(HEIGHT // 5, 3 * HEIGHT // 5)
"""Rows that are compared: below the scores, above the weapon and the ammunition, which never move."""
CLEAR = 0.3
"""Absolute correlation from which a lag counts as found."""


def main() -> int:
    """Print the correlation at every lag and the best of them."""
    args = _arguments()
    from megatv.data.csgo import find_episodes  # imports torch, which takes seconds

    mouse, flow = [], []
    for path in progress(find_episodes(args.episodes), desc="episodes"):
        with Episode(path) as episode:
            mouse.append(np.array([action.mouse_x for action in episode.actions()], float))
            flow.append(horizontal_flow(episode))
    found = correlations(mouse, flow, args.max_lag)
    for lag, value in found.items():
        print(f"lag {lag:3d}   correlation {value:+.3f}   {'#' * round(40 * abs(value))}")
    best = max(found, key=lambda lag: abs(found[lag]))
    if abs(found[best]) < CLEAR:
        print(
            f"warning: no lag stands out (lag {best} is the best with {found[best]:+.3f}, {CLEAR} would be "
            "clear); give more episodes, or ones with more turning",
            file=sys.stderr,
        )
        return 1
    print(f"best lag: {best} ({sum(map(len, mouse))} frames); make the shards with --action-lag {best}")
    return 0


def horizontal_flow(episode: Episode) -> np.ndarray:
    """float64 [F]: how many pixels the picture moved to the right since the frame before; nan for frame 0."""
    flow = np.full(episode.frames, np.nan)
    before = None
    for frame in range(episode.frames):
        spectrum = _spectrum(episode.picture(frame))
        if before is not None:
            flow[frame] = _shift(before, spectrum)
        before = spectrum
    return flow


def correlations(mouse: list[np.ndarray], flow: list[np.ndarray], max_lag: int) -> dict[int, float]:
    """Pearson's correlation of mouse_x [F] and flow [F], pooled over episodes, for lags -max_lag..max_lag.

    Both go in as signed square roots, so that a few wild flicks do not outweigh all the rest. Raises
    ValueError when one of them never changes.
    """
    found = {}
    for lag in range(-max_lag, max_lag + 1):
        pairs = []
        for moved, seen in zip(mouse, flow, strict=True):
            frames = np.arange(max(1, lag), len(seen) + min(0, lag))
            pairs.append(np.stack([moved[frames - lag], seen[frames]]))
        x, y = np.concatenate(pairs, axis=1)
        x, y = (np.sign(values) * np.sqrt(np.abs(values)) for values in (x, y))
        if not len(x) or not x.std() or not y.std():
            still = (
                "the mouse never moves" if not len(x) or not x.std() else "the picture never moves sideways"
            )
            raise ValueError(f"{still} in these episodes at lag {lag}; name others, or a smaller --max-lag")
        found[lag] = float(np.corrcoef(x, y)[0, 1])
    return found


_WINDOW = np.hanning(BAND.stop - BAND.start)[:, None] * np.hanning(WIDTH)


def _spectrum(picture: np.ndarray) -> np.ndarray:
    """The Fourier transform of a picture's band in grey, faded out at its edges."""
    grey = picture[BAND].mean(axis=2)
    return np.fft.rfft2((grey - grey.mean()) * _WINDOW)


def _shift(before: np.ndarray, after: np.ndarray) -> int:
    """Pixels to the right, by phase correlation: one displacement of the whole band, up to half its width."""
    cross = after * before.conj()
    peak = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), s=_WINDOW.shape).argmax()
    column = int(peak % WIDTH)
    return column if column < WIDTH // 2 else column - WIDTH


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("episodes", type=Path, nargs="+", help=".hdf5 files, or folders of them")
    parser.add_argument("--max-lag", type=int, default=MAX_LAG, help=f"frames to try, both ways ({MAX_LAG})")
    args = parser.parse_args()
    if args.max_lag < 1:
        parser.error(f"--max-lag {args.max_lag}: at least 1 frame is needed")
    return args


if __name__ == "__main__":
    main_guard(main)

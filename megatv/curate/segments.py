"""A clip to segments, each of which gets a caption of its own (TV2TV section 4.1).

Hierarchical clustering of the embeddings, kept contiguous in time and built from the top: the clip is split
in two where the two sides differ most, then the piece with the best split, and so on. From the top, because
merging frames from below promises no least length, and on a still picture it chains into one piece. A
boundary at a key frame counts for more; how many pieces there are follows from length and key frames.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from megatv.curate.settings import SegmentSettings, Span

TOLERANCE_SECONDS = 1e-6
"""Times are sums of floats: lengths closer than this are equal."""


def segment_count(clip: Span, key_frames: Sequence[float], settings: SegmentSettings) -> int:
    """How many segments a clip should have: one a key frame and one before the first of them.

    But at least one for every `quiet_seconds`, within `min_segments` and `max_segments`, and no more than
    there are whole `min_seconds` in the clip.
    """
    inside = sum(clip[0] < time < clip[1] for time in key_frames)
    seconds = clip[1] - clip[0]
    wanted = max(inside + 1, math.ceil(seconds / settings.quiet_seconds - TOLERANCE_SECONDS))
    wanted = min(max(wanted, settings.min_segments), settings.max_segments)
    return min(wanted, max(1, math.floor(seconds / settings.min_seconds + TOLERANCE_SECONDS)))


def choose_segments(
    clip: Span,
    embeddings: np.ndarray,
    times: np.ndarray,
    key_frames: Sequence[float],
    settings: SegmentSettings,
) -> list[Span]:
    """Segments in order: the first begins with the clip, the last ends with it, and they leave no gaps.

    embeddings: unit vectors [N, D] of frames at `times` (seconds of the video, [N], rising); those outside
    the clip are not looked at, so a whole shot's will do. key_frames: some of these times. Every boundary is
    the time of a frame. No segment is shorter than `min_seconds`. There are `segment_count` of them, or fewer
    when every piece is too short to be split (under two `min_seconds` and the step between frames).
    Raises ValueError for a clip too short for `min_segments`.
    """
    start, end = clip
    if end - start < settings.min_segments * settings.min_seconds - TOLERANCE_SECONDS:
        raise ValueError(
            f"the clip from {start:g} s to {end:g} s is too short for segments.min_segments "
            f"{settings.min_segments} of segments.min_seconds {settings.min_seconds:g}: raise "
            "clips.min_seconds"
        )
    inside = (times >= start) & (times < end)
    embeddings, times = np.asarray(embeddings, dtype=np.float64)[inside], np.asarray(times)[inside]
    weights = np.where(np.isin(times, list(key_frames)), settings.key_frame_weight, 1.0)
    splitter = _Splitter(embeddings, times, clip, weights, settings.min_seconds)
    pieces = [(0, len(times))]
    while len(pieces) < segment_count(clip, key_frames, settings):
        splits = [(*split, piece) for piece in pieces if (split := splitter.best(*piece)) is not None]
        if not splits:
            break
        *_, at, piece = max(splits)
        place = pieces.index(piece)
        pieces[place : place + 1] = [(piece[0], at), (at, piece[1])]
    bounds = [start, *(float(times[first]) for first, _ in pieces[1:]), end]
    return list(itertools.pairwise(bounds))


class _Splitter:
    """The best boundary within a piece [first, last) of a clip's frames."""

    def __init__(
        self, embeddings: np.ndarray, times: np.ndarray, clip: Span, weights: np.ndarray, min_seconds: float
    ) -> None:
        self.sums = np.concatenate([np.zeros((1, embeddings.shape[1])), np.cumsum(embeddings, axis=0)])
        self.bounds = np.array([clip[0], *times[1:], clip[1]])
        self.weights = weights
        self.min_seconds = min_seconds - TOLERANCE_SECONDS

    def best(self, first: int, last: int) -> tuple[float, float, int] | None:
        """(gain, balance, index) of the best frame to begin a new piece with, or None if none is allowed.

        The gain is Ward's: the fall of the squared distances to the mean when one piece becomes two, times
        the boundary's weight. Equal gains go to the more even split, so a still picture is cut in the middle.
        """
        splits = []
        for at in range(first + 1, last):
            left = self.bounds[at] - self.bounds[first]
            right = self.bounds[last] - self.bounds[at]
            if min(left, right) < self.min_seconds:
                continue
            n, m = at - first, last - at
            apart = (self.sums[at] - self.sums[first]) / n - (self.sums[last] - self.sums[at]) / m
            gain = round(float(n * m / (n + m) * (apart @ apart)) * self.weights[at], 9)
            splits.append((gain, round(float(min(left, right)), 6), at))
        return max(splits, default=None)

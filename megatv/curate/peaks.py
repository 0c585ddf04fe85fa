"""Where meaning changes, and the clips that hold most of it (TV2TV section 4.1).

The cosine distance of neighbouring embeddings is a series over time; its peaks are key frames. An 8-second
window slides over every shot, and the places with most peaks become clips. Pure functions of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from megatv.curate.settings import ClipSettings, Span

TOLERANCE_SECONDS = 1e-6
"""Times are sums of floats: lengths closer than this are equal."""


def semantic_change(embeddings: np.ndarray) -> np.ndarray:
    """float64 [N]: cosine distance of each of N unit vectors [N, D] to the one before it; 0 for the first."""
    e = np.asarray(embeddings, dtype=np.float64)
    change = np.zeros(len(e))
    change[1:] = 1.0 - np.einsum("nd,nd->n", e[1:], e[:-1])
    return np.maximum(change, 0.0)


def prominences(series: np.ndarray) -> np.ndarray:
    """float64 [N]: how far each value stands out, 0 where it is no local maximum.

    The height above the higher of the two deepest points that one must pass to reach anything higher (to the
    left; to the right), as in topography; towards a side where nothing is higher, the deepest point up to the
    end counts. Of a plateau, its first value is the maximum.
    """
    x = np.asarray(series, dtype=np.float64)
    found = np.zeros(len(x))
    for i in range(1, len(x)):
        right = i
        while right + 1 < len(x) and x[right + 1] == x[i]:
            right += 1
        if x[i] <= x[i - 1] or (right + 1 < len(x) and x[right + 1] > x[i]):
            continue
        higher = np.flatnonzero(x > x[i])
        left_end = higher[higher < i].max(initial=-1) + 1
        right_end = higher[higher > i].min(initial=len(x))
        found[i] = x[i] - max(x[left_end : i + 1].min(), x[i:right_end].min())
    return found


def find_peaks(change: np.ndarray, times: np.ndarray, settings: ClipSettings) -> np.ndarray:
    """int64 [P], rising: indices of the peaks of one shot's series of semantic change [N].

    times: of its frames, seconds [N]. A peak has at least `peak_prominence`, lies at least `peak_mads` median
    absolute deviations of the series above its median, and is the highest within `peak_gap_seconds` (the
    earlier of equals).
    """
    if not len(change):
        return np.zeros(0, dtype=np.int64)
    prominent = prominences(change)
    median = float(np.median(change))
    usual = median + settings.peak_mads * float(np.median(np.abs(change - median)))
    candidates = np.flatnonzero((prominent > 0) & (prominent >= settings.peak_prominence) & (change >= usual))
    kept: list[int] = []
    for index in sorted(candidates.tolist(), key=lambda i: (-change[i], i)):
        gaps = np.abs(times[kept] - times[index])
        if gaps.min(initial=np.inf) >= settings.peak_gap_seconds - TOLERANCE_SECONDS:
            kept.append(index)
    return np.array(sorted(kept), dtype=np.int64)


def find_key_frames(embeddings: np.ndarray, times: np.ndarray, settings: ClipSettings) -> list[float]:
    """Times of the key frames of one shot, from its unit vectors [N, D] at `times` (seconds [N]).

    A key frame is the first frame after a peak of change. One shot at a time: across a cut all changes.
    """
    return [float(times[index]) for index in find_peaks(semantic_change(embeddings), times, settings)]


def choose_clips(shot: Span, key_frames: Sequence[float], settings: ClipSettings) -> list[Span]:
    """Clips of a shot in order of time; they do not overlap, and the same input gives the same clips.

    The window with most key frames comes first (the earliest of equals), then the same on what is left before
    and behind it. A shot, or a rest, no longer than the window is a clip as a whole. A rest too short for a
    clip of its own joins the clip beside it if it holds key frames and the clip stays within `max_seconds`.
    Clips hold at least `min_peaks` key frames and keep `margin_seconds` away from the shot's ends.
    """
    margin = settings.margin_seconds
    return _cover((shot[0] + margin, shot[1] - margin), sorted(key_frames), settings)


def _cover(span: Span, key_frames: Sequence[float], settings: ClipSettings) -> list[Span]:
    start, end = span
    if _length(span) < settings.min_seconds - TOLERANCE_SECONDS:
        return []
    if _count(span, key_frames) < settings.min_peaks:
        return []
    if _length(span) <= settings.window_seconds + TOLERANCE_SECONDS:
        return [span]
    clip = max(_windows(span, settings), key=lambda window: (_count(window, key_frames), -window[0]))
    before, behind = (start, clip[0]), (clip[1], end)
    for rest in sorted((before, behind), key=lambda rest: (-_count(rest, key_frames), rest[0])):
        whole = min(rest[0], clip[0]), max(rest[1], clip[1])
        short = _length(rest) < settings.min_seconds - TOLERANCE_SECONDS
        if short and _count(rest, key_frames) and _length(whole) <= settings.max_seconds + TOLERANCE_SECONDS:
            clip = whole
    chosen = [clip] if _count(clip, key_frames) >= settings.min_peaks else []
    return [
        *_cover((start, clip[0]), key_frames, settings),
        *chosen,
        *_cover((clip[1], end), key_frames, settings),
    ]


def _windows(span: Span, settings: ClipSettings) -> list[Span]:
    """Every window that begins a whole number of strides into the span, and the one that ends with it."""
    last = span[1] - settings.window_seconds
    steps = math.floor((last - span[0]) / settings.stride_seconds)
    starts = [span[0] + k * settings.stride_seconds for k in range(steps + 1)]
    return [*((start, start + settings.window_seconds) for start in starts), (last, span[1])]


def _length(span: Span) -> float:
    return span[1] - span[0]


def _count(span: Span, key_frames: Sequence[float]) -> int:
    return sum(span[0] <= time < span[1] for time in key_frames)

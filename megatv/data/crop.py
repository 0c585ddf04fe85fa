"""Which frames of a stored clip an example holds in an epoch: a function of (seed, epoch, sample id).

TV2TV cuts clips of 6 to 16 s, 8.2 s on average, and trains on 6.1 s (98 frames) of one, sampled at random
(section 4.1). With F frames in the clip and L in an example, `data.crop` is

    starts   L consecutive frames; each of the F - L + 1 starts is equally likely. Frame f is in the crop with
             min(f + 1, F - f, L, F - L + 1) / (F - L + 1): all frames alike but the L - 1 at either end
    frames   the window may reach over either end by up to L - 1 frames, and what lies outside is left out;
             each of the F + L - 1 places is equally likely. Every frame is in it with L / (F + L - 1)

A clip of at most L frames is taken whole. An epoch has one crop of every clip, so frames of long clips come
less often, and `cut_clips` makes several clips of a long video. No rule has both, L frames in every crop and
every frame equally likely: frames f and f + 1 < L are equally likely only if no crop starts at f + 1, and so
on from window to window, so that crops would start at multiples of L alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from megatv.config import FPS
from megatv.data.captions import clip_captions
from megatv.data.format import Rule
from megatv.data.noise import Draws
from megatv.data.sequence import chunk_start_seconds
from megatv.data.video import whole_latents
from megatv.types import Example

CLIP_SECONDS = 16
"""Longer videos are stored in clips of about so many seconds, the paper's longest (section 4.1)."""


def draw_window(frames: int, length: int, rule: Rule, draws: Draws) -> range:
    """The consecutive frames of a clip of `frames` that are the example of `draws`, at most `length`.

    A window that reaches over an end keeps whole latents: its inner end moves by up to three frames, so of
    the L windows with a frame, up to three are without it for each end of the clip within L frames.
    """
    assert rule != "none"
    if frames <= length:
        return range(frames)
    if rule == "starts":
        start = draws.place(frames - length + 1)
        return range(start, start + length)
    start = draws.place(frames + length - 1) - (length - 1)
    if start < 0:
        return range(_whole_frames(start + length))
    if start + length > frames:
        return range(frames - _whole_frames(frames - start), frames)
    return range(start, start + length)


def crop_words(clip: Example, frames: int, window: range) -> Example:
    """The words of `clip`, which has `frames`, as those of its `window`; latents are left as they are.

    The captions in force at its first frame are carried to time 0, and only a window that ends with the clip
    can end it.
    """
    return replace(
        clip,
        captions=clip_captions(clip.captions, window.start / FPS, len(window) / FPS),
        valid_latents=whole_latents(len(window)),
        ends_clip=clip.ends_clip and window.stop == frames,
    )


def wordiest_crop(clip: Example, frames: int, length: int) -> Example:
    """Of all windows of `length` frames the words of that with most of them, by bytes: a crop has no more.

    A window gains words only where it reaches the next caption, so one window for each caption is looked at.
    """
    times = np.array([caption.start_seconds for caption in clip.captions])
    before = np.cumsum([0, *(len(caption.text.encode()) for caption in clip.captions)])
    reach = np.append(np.floor(times * FPS) + 1 - length, 0)
    starts = np.unique(reach.clip(0, max(0, frames - length)).astype(np.int64))
    begun = np.searchsorted(times, starts / FPS, side="right")
    in_force = np.searchsorted(times, times[np.maximum(begun - 1, 0)]) if len(times) else begun
    bytes_of = before[np.searchsorted(times, (starts + min(frames, length)) / FPS)] - before[in_force]
    start = int(starts[bytes_of.argmax()])
    return crop_words(clip, frames, range(start, min(frames, start + length)))


def consecutive_windows(frames: int, length: int) -> list[range]:
    """All frames of a clip in order: windows of `length`, the last one of what is left."""
    return [range(start, min(frames, start + length)) for start in range(0, frames, length)]


def longest_clip(length: int, rule: Rule) -> int:
    """The most frames that `cut_clips` puts in a clip."""
    return length + 3 * _usual_step(length, rule)


def overlap_of(length: int, rule: Rule) -> int:
    """Frames that clips of one video share: with `starts`, so many that every start lies in one clip."""
    return length - 1 if rule == "starts" else 0


def cut_clips(
    frames: Iterator[np.ndarray], expected: int, length: int, rule: Rule
) -> Iterator[tuple[np.ndarray, bool]]:
    """A video as clips to crop [F, H, W, 3], with `overlap_of` common frames, and whether this is the last.

    A video longer than about CLIP_SECONDS gives several clips with equally many places for a crop, if it has
    the `expected` number of frames. No frame is lost. Raises ValueError when there is none.
    """
    overlap, usual = overlap_of(length, rule), _usual_step(length, rule)
    places = max(1, expected - overlap)
    mean_step = max(usual / 2, places / max(1, round(places / usual)))
    steps = (math.floor((k + 1) * mean_step) - math.floor(k * mean_step) for k in itertools.count())
    held, step = list[np.ndarray](), next(steps)
    for frame in frames:
        held.append(frame)
        if len(held) == overlap + step + step // 2:  # what is left is no shorter than half a clip
            yield np.stack(held[: overlap + step]), False
            held, step = held[step:], next(steps)
    if not held:
        raise ValueError("the video has no frames from the start on that is given; correct `start`")
    yield np.stack(held), True


def _usual_step(length: int, rule: Rule) -> int:
    """Frames from the first one of a clip to that of the next."""
    return max(CLIP_SECONDS * FPS - overlap_of(length, rule), length)


def _whole_frames(frames: int) -> int:
    """Frames of the whole latents among the first `frames`."""
    return round(chunk_start_seconds(whole_latents(frames)) * FPS)

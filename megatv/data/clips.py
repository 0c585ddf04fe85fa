"""What goes into shards: examples before the codec, from videos with captions, CS:GO or the toy world.

`tools/make_shards.py` says how they are cut. Nothing here encodes or writes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megatv.choices import SPLITS
from megatv.config import FPS, GROUP_FRAMES, Config
from megatv.data import csgo
from megatv.data.budget import TextBudget
from megatv.data.captions import CaptionedVideo, check_duration, clip_captions, read_captions
from megatv.data.crop import crop_words, cut_clips, draw_window, overlap_of
from megatv.data.noise import Draws
from megatv.data.toy_pictures import SIZE
from megatv.data.toy_world import META_PROMPT, simulate
from megatv.data.video import cut, iterate_video, whole_latents
from megatv.data.video_source import read_timeline
from megatv.log import say
from megatv.types import Caption, Example
from megatv.untrusted import inside

LATE_SECONDS = 0.1
"""How long sound may go before the first picture without a word; it is audible from about there on."""
EPISODES_PER_SEED = 1 << 32


@dataclass(frozen=True)
class Clip:
    """One example before the codec: its words (an Example without latents) and frames [F, H, W, 3].

    There are at most an example's frames, but for a clip that the loader crops. where names the clip's
    origin in messages; source and quality are kept in the shards.
    """

    where: str
    words: Example
    frames: np.ndarray
    source: dict[str, Any]
    quality: dict[str, float] = field(default_factory=dict)


def clip_frames(config: Config) -> int:
    """Frames of one example."""
    return config.video.groups * GROUP_FRAMES


def toy_clips(episodes: int, seed: int, split: str, config: Config) -> Iterator[Clip]:
    """Episodes of the toy world; the two splits of all seeds share none."""
    if (config.video.width, config.video.height) != (SIZE, SIZE):
        raise ValueError(
            f"the toy world's pictures are {SIZE}x{SIZE}: set video.width and video.height to {SIZE}"
        )
    first = (2 * seed + SPLITS.index(split)) * EPISODES_PER_SEED
    for index in range(episodes):
        episode = simulate(first + index, config.video.groups)
        name = f"toy-{split}-{seed}-{index:06d}"
        words = _words(name, episode.captions(), META_PROMPT, valid_latents=config.latents)
        yield Clip(name, words, episode.frames, {"video": name, "toy_world_seed": first + index})


def csgo_clips(path: Path, action_lag: int, config: Config) -> Iterator[Clip]:
    """The clips of one episode of CS:GO, in order of time."""
    length = clip_frames(config)
    found = csgo.episode_clips(
        path, width=config.video.width, height=config.video.height, length=length, action_lag=action_lag
    )
    for clip in found:
        name = f"{path.stem}@{clip.first_frame / FPS:.4f}"
        words = _words(name, clip.captions, csgo.META_PROMPT, valid_latents=whole_latents(len(clip.frames)))
        source = {"video": path.name, "start": clip.first_frame / FPS, "frames": len(clip.frames)}
        yield Clip(str(path), words, clip.frames, source | {"action_lag": action_lag})


def checked_videos(
    folder: Path, captions: Path, budget: TextBudget, damaged: list[str]
) -> list[tuple[CaptionedVideo, float]]:
    """Every described video and how many seconds of it are used, after all checks that need no decoding.

    Videos that cannot be read are left out, and the reason is added to `damaged`.
    """
    videos = []
    for video in read_captions(captions):
        with naming(video.where):
            file = inside(folder, video.video)
            if not file.is_file():
                raise ValueError(
                    f"video {video.video!r} is not in {folder}{_look_alike(file)}; copy it there or correct "
                    "the name"
                )
            budget.check(_words(video.video, (), video.meta_caption, video.detailed_caption))
        try:
            shown = read_timeline(file)
        except ValueError as error:
            damaged.append(f"{video.where}: {error}")
            continue
        if shown.begins > LATE_SECONDS:
            say(
                f"{video.where}: the first picture of {video.video!r} comes {shown.begins:.2f} s after its "
                "sound; times count from the picture, where players count from the sound"
            )
        check_duration(video, shown.end)
        videos.append((video, (video.end_seconds or shown.end) - video.start_seconds))
    return videos


def _look_alike(file: Path) -> str:
    """Which file of the folder has the same name but for letter case or the way that accents are written."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    others = file.parent.iterdir() if file.parent.is_dir() else ()
    found = next((other.name for other in others if plain(other.name) == plain(file.name)), None)
    return "" if found is None else f" under just this name ({found!a} is, and not {file.name!a})"


def until_damage(sources: Iterable[Iterator[Clip]], damaged: list[str]) -> Iterator[Clip]:
    """The clips of every source, up to what cannot be read; the reason is added to `damaged`."""
    for clips in sources:
        try:
            yield from clips
        except ValueError as error:
            damaged.append(str(error))


def video_clips(folder: Path, video: CaptionedVideo, seconds: float, config: Config) -> Iterator[Clip]:
    """The clips of one line of the captions file, in order of time: examples, or longer ones to crop."""
    length, crop, first = clip_frames(config), config.data.crop, 0
    frames = iterate_video(
        inside(folder, video.video),
        width=config.video.width,
        height=config.video.height,
        start_seconds=video.start_seconds,
    )
    if video.end_seconds is not None:
        frames = islice(frames, math.ceil(seconds * FPS - 1e-6))
    pieces = cut(frames, length)
    if crop != "none":
        pieces = cut_clips(frames, round(seconds * FPS), length, crop)
    with naming(video.where):
        for piece, is_last in pieces:
            start = first / FPS
            words = _words(
                f"{video.video}@{video.start_seconds + start:.4f}",
                clip_captions(video.captions, start, max(len(piece), length) / FPS),
                video.meta_caption,
                video.detailed_caption,
                valid_latents=whole_latents(min(len(piece), length)),
                ends_clip=is_last and video.end_seconds is None,
            )
            source = {"video": video.video, "start": video.start_seconds + start, "frames": len(piece)}
            yield Clip(video.where, words, piece, source | video.source, video.quality)
            first += len(piece) - overlap_of(length, crop)


def stored_crops(clip: Clip, count: int, config: Config) -> Iterator[Clip]:
    """The crops of a clip in the first `count` epochs of a run with this config; equal ones come once."""
    length, frames = clip_frames(config), len(clip.frames)
    draws = (Draws(config.run.seed, epoch, clip.words.id) for epoch in range(count))
    windows = dict.fromkeys(draw_window(frames, length, config.data.crop, draw) for draw in draws)
    for index, window in enumerate(windows):
        words = replace(crop_words(clip.words, frames, window), id=f"{clip.words.id}#{index}")
        place = {"start": clip.source["start"] + window.start / FPS, "frames": len(window)}
        shown = clip.frames[window.start : window.stop]
        yield replace(clip, words=words, frames=shown, source=clip.source | place)


def _words(
    id: str,
    captions: tuple[Caption, ...],
    meta_caption: str,
    detailed_caption: str = "",
    *,
    valid_latents: int = 1,
    ends_clip: bool = False,
) -> Example:
    """An Example whose latents are still to be coded."""
    return Example(id, np.empty(0), captions, meta_caption, detailed_caption, valid_latents, ends_clip)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Say in errors which line or episode they belong to."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error

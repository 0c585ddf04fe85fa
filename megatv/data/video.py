"""Bytes to frames and back: probe, decode at given times and size, cut to clips, write H.264.

Times are seconds from a video's first frame, and the picture of a time is the one on screen then, so any
input rate, constant or not, is resampled without drift. PyAV and DALI stand behind one function,
`decode_frames`; neither is ever asked for a frame by a nominal rate.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from megatv.config import FPS, GROUP_FRAMES, GROUP_LATENTS, TEMPORAL_FACTOR
from megatv.data import video_dali
from megatv.data.video_frames import timed_frames
from megatv.data.video_picture import picture
from megatv.data.video_source import (
    TIME_TOLERANCE,
    Timeline,
    name_of,
    read_timeline,
)
from megatv.log import say

if TYPE_CHECKING:
    import torch

MAX_DECODED_BYTES = 1 << 31
"""Bytes that one call may return: 12 minutes of 320x192 at 16 fps."""
TOLERANCE = 3.0
"""Mean absolute difference, of 255, that two decoders' pixels may have: they round YUV to RGB differently."""
Backend = Literal["auto", "pyav", "dali"]
_choosing = threading.Lock()
"""The loader's threads wait for the first one's trial."""


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels as shown (upright, pixels made square), mean frames a second, duration in seconds."""

    width: int
    height: int
    rate: float
    seconds: float


def probe(source: str | Path | bytes) -> VideoInfo:
    """What a video file (or its bytes) is, by its first frame and its packets; see `read_timeline`.

    Raises ValueError when it cannot be opened, has no video stream or is empty.
    """
    timeline = read_timeline(source)
    return VideoInfo(timeline.width, timeline.height, timeline.rate, timeline.end)


def iterate_video(
    source: str | Path | bytes, *, width: int, height: int, start_seconds: float = 0.0, fps: float = FPS
) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] (RGB), one at a time, until the video ends.

    Frame k is the picture on screen at `start_seconds + k / fps`: the last one whose time is not later. So
    a video of that rate passes through unchanged. See `video_picture` for what a stored frame becomes.
    Raises ValueError with the file and the reason.
    """
    assert start_seconds >= 0
    yield from _on_screen(source, (start_seconds + k / fps for k in itertools.count()), width, height)


def decode_frames(
    source: str | Path | bytes,
    seconds: Sequence[float],
    *,
    width: int,
    height: int,
    device: str | torch.device = "cpu",
    backend: Backend = "auto",
) -> torch.Tensor:
    """uint8 [F, H, W, 3] (RGB) on `device`: the pictures on screen at `seconds` (ascending).

    source   the bytes of a whole video file, on a GPU one that can be trusted (see `video_dali`); or, for
             the backend "pyav" alone, a path: no more of the file is read than is needed

    "auto" takes DALI (NVDEC) on a CUDA device, where it is installed, shows this kind of video rightly and
    has shown a trial of this codec as PyAV does, else PyAV; which one and why is said once. The two pick the
    same frames; their pixels differ by less than TOLERANCE. On a CUDA device the pictures are ready for any
    stream when they are returned. Raises ValueError when the video does not decode or ends too early, and
    when a backend asked for by name is missing or cannot show this video.
    """
    import torch  # here, so that processes that only cut videos start without it

    assert len(seconds) and seconds[0] >= 0 and all(a <= b for a, b in itertools.pairwise(seconds))
    assert isinstance(source, bytes) or backend == "pyav"
    name = name_of(source)
    _check_amount(len(seconds), width, height, name)
    device = torch.device(device)
    if isinstance(source, bytes) and (backend == "dali" or (backend == "auto" and device.type == "cuda")):
        timeline = read_timeline(source)
        reason = video_dali.obstacle(timeline, device)
        if reason and backend == "dali":
            raise ValueError(f"{name}: DALI was asked for, but {reason}; or take the backend 'pyav'")
        if backend == "auto":
            with _choosing:
                reason = reason or _failed_trial(timeline.codec, device)
                way = reason or ("NVDEC" if device.type == "cuda" else "on the CPU")
                _say_once(timeline.codec, str(device), "PyAV" if reason else "DALI", way)
        if not reason:
            indices = _indices(timeline, seconds, name)
            with _own_stream(device):
                return video_dali.decode(source, indices, timeline, width, height, device)
    pictures = list(_on_screen(source, iter(seconds), width, height))
    if len(pictures) < len(seconds):
        raise ValueError(_too_short(name, seconds[len(pictures)]))
    with _own_stream(device):
        return torch.from_numpy(np.stack(pictures)).to(device)


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
    name = name_of(source)
    _check_amount(frames or 0, width, height, name)
    found: list[np.ndarray] = []
    pictures = iterate_video(source, width=width, height=height, start_seconds=start_seconds, fps=fps)
    for shown in itertools.islice(pictures, frames):
        found.append(shown)
        _check_amount(len(found), width, height, name)
    if not found or (frames is not None and len(found) < frames):
        raise ValueError(
            f"{name}: is shorter than asked, it has {len(found)} frames at {fps:g} fps from "
            f"{start_seconds:g} s on instead of {frames or 'at least 1'}; ask for fewer or start earlier"
        )
    return np.stack(found)


def cut(frames: Iterator[np.ndarray], length: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Consecutive pieces [F, H, W, 3] of `length` frames, and whether the video ends with this one.

    A last piece shorter than a group is left out, unless it is the only one.
    """
    piece = list(itertools.islice(frames, length))
    if not piece:
        raise ValueError("there is no picture from there on; start earlier")
    only = True
    while True:
        try:
            following = list(itertools.islice(frames, length))
        except ValueError:  # damage behind a whole piece
            yield np.stack(piece), False
            raise
        if not following:
            break
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
    _checked(frames, str(path))
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # it may be a link
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            _encode(container, frames, fps, crf=18)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def encode_video(
    frames: np.ndarray, *, crf: int, fps: float = FPS, key_frame_every: int | None = None
) -> bytes:
    """An mp4 of the frames uint8 [F, H, W, 3] as H.264 (yuv420p), its bytes; ValueError as `write_video`.

    key_frame_every: at most so many frames from one where decoding can start to the next; None: x264's 250
    """
    return encode_clips([frames], crf=crf, fps=fps, key_frame_every=key_frame_every)


def encode_clips(
    clips: Iterable[np.ndarray],
    *,
    crf: int,
    fps: float = FPS,
    most: int | None = None,
    key_frame_every: int | None = None,
) -> bytes:
    """One mp4 of clips uint8 [F, H, W, 3] that follow each other, read one by one; see `encode_video`.

    most  bytes; ValueError when the mp4 has more
    """
    file = io.BytesIO()

    def frames() -> Iterator[np.ndarray]:
        for clip in clips:
            for pixels in _checked(clip, "video bytes"):
                check_size()
                yield pixels

    def check_size() -> None:
        if most is not None and file.tell() > most:
            raise ValueError(f"this video has more than {most >> 20} MiB as a file: make a shorter one")

    with av.open(file, "w", format="mp4") as container:
        _encode(container, frames(), fps, crf=crf, key_frame_every=key_frame_every)
    check_size()
    return file.getvalue()


def _checked(frames: np.ndarray, name: str) -> np.ndarray:
    """The frames, unchanged; ValueError unless an mp4 can hold them."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(
            f"{name}: frames must be uint8 [F, H, W, 3] with F >= 1, got {frames.dtype} {frames.shape}"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{name}: yuv420p needs an even width and height, got {width}x{height}")
    return frames


def _encode(
    container: OutputContainer,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    crf: int,
    key_frame_every: int | None = None,
) -> None:
    """All frames [H, W, 3] as the one H.264 stream of an open container."""
    frames = iter(frames)
    first = next(frames)
    options = {"crf": str(crf)} | ({"g": str(key_frame_every)} if key_frame_every else {})
    stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1001), options=options)
    height, width = first.shape[:2]
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    # What swscale makes of RGB; said, so that no decoder has to guess it from the size.
    stream.codec_context.colorspace = Colorspace.SMPTE170M
    stream.codec_context.color_range = ColorRange.MPEG
    for pixels in itertools.chain([first], frames):
        container.mux(stream.encode(VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())


def _on_screen(
    source: str | Path | bytes, times: Iterable[float], width: int, height: int
) -> Iterator[np.ndarray]:
    """The picture [height, width, 3] on screen at each of `times` (ascending), until the video ends."""
    name, due = name_of(source), iter(times)
    wanted: float | None = next(due)
    assert wanted is not None
    shown: VideoFrame | None = None
    end = 0.0
    for time, hold, frame in timed_frames(source, wanted):
        if shown is not None and wanted < time - TIME_TOLERANCE:
            pixels = picture(shown, width, height)
            while wanted < time - TIME_TOLERANCE:
                yield pixels
                wanted = next(due, None)
                if wanted is None:
                    return
        shown, end = frame, time + hold
    if shown is None:
        raise ValueError(f"{name}: holds no frames; make the file again or leave it out")
    if wanted < end - TIME_TOLERANCE:
        pixels = picture(shown, width, height)
        while wanted is not None and wanted < end - TIME_TOLERANCE:
            yield pixels
            wanted = next(due, None)


def _indices(timeline: Timeline, seconds: Sequence[float], name: str) -> np.ndarray:
    """int32 [F]: numbers, in order of showing, of the frames that `_on_screen` shows at `seconds`."""
    late = next((second for second in seconds if second >= timeline.end - TIME_TOLERANCE), None)
    if late is not None:
        raise ValueError(_too_short(name, late))
    after = np.searchsorted(timeline.seconds, np.asarray(seconds) + TIME_TOLERANCE, side="right")
    return (after - 1).astype(np.int32)


def _too_short(name: str, second: float) -> str:
    return f"{name}: is shorter than asked, it has ended at {second:g} s; ask for earlier times"


def _check_amount(frames: int, width: int, height: int, name: str) -> None:
    """ValueError when so many frames should not be held at once."""
    if frames * width * height * 3 > MAX_DECODED_BYTES:
        raise ValueError(
            f"{name}: {frames} frames or more of {width}x{height} would take over "
            f"{MAX_DECODED_BYTES >> 30} GiB; ask for fewer, or take them one by one (iterate_video)"
        )


@cache
def _failed_trial(codec: str, device: torch.device) -> str:
    """Why DALI, though it is installed, is not used for this codec on this device; "" when it works.

    A few pictures made for the purpose must look as PyAV shows them. So a machine without NVDEC (no driver
    library in the container, a codec that the GPU lacks) is found out at once, instead of with every video.
    """
    y, x, t = np.mgrid[:256, :256, :8]
    waves = (128 + 80 * np.sin((x + 12 * t) / 20) * np.cos(y / 30)).astype(np.uint8)
    try:
        with av.open(file := io.BytesIO(), "w", format="matroska") as container:
            stream = cast(VideoStream, container.add_stream(codec, FPS))
            stream.width, stream.height = 256, 256
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for pixels in waves.transpose(2, 0, 1):
                container.mux(stream.encode(VideoFrame.from_ndarray(np.stack([pixels] * 3, -1), "rgb24")))
            container.mux(stream.encode())
        backends: tuple[Backend, Backend] = ("dali", "pyav")
        shown = [
            decode_frames(file.getvalue(), [0, 0.25], width=256, height=256, device=device, backend=backend)
            for backend in backends
        ]
        difference = float((shown[0].float() - shown[1].float()).abs().mean())
        return (
            "" if difference < TOLERANCE else f"a trial differs from PyAV's pixels by {difference:.3g} of 255"
        )
    except Exception as error:  # whatever a driver may throw: PyAV works
        return f"a trial failed: {(str(error) or type(error).__name__).splitlines()[0]}"


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Work beside a training step instead of queueing behind it; at the end it is done, for every stream.

    Whoever reads the result in another stream keeps it until that has happened, as `Tensor.cpu` makes sure.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    stream = _stream(device)
    with torch.cuda.stream(stream):
        yield
        stream.synchronize()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream(device)


@cache
def _say_once(codec: str, device: str, backend: str, why: str) -> None:
    say(f"video: {codec} for {device} is decoded by {backend} ({why})")

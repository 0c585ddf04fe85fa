"""Hands out a video's decoded frames in order of time, from any time on; damage is refused, never shown.

FFmpeg's decoders paint over damage unless told not to, and mark what they painted. Both are errors here, also
in frames that are not shown: later ones are built upon them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from megatv.data.video_clock import may_jump
from megatv.data.video_picture import progressive
from megatv.data.video_source import (
    ADVICE,
    BOUNDS,
    MAX_GAP_SECONDS,
    MAX_RATE,
    MAX_SECONDS,
    TIME_TOLERANCE,
    check_size,
    clock_of,
    decoded,
    frame_time,
    hold_seconds,
    name_of,
    open_video,
    stream_packets,
)

SEEK_MARGIN_SECONDS = 1.0
"""Seconds. Indexes go by decoding time, which runs some frames ahead of the time on screen."""
TimedFrame = tuple[float, float, VideoFrame]
"""(time, hold, frame): seconds from the video's first frame, and for how long the frame stays on screen if no
other one follows."""


def timed_frames(source: str | Path | bytes, start_seconds: float = 0.0) -> Iterator[TimedFrame]:
    """Frames in order of time, from the one on screen at `start_seconds` on (or from the last one).

    Interlaced frames arrive deinterlaced. Decoding begins with a key frame before the start; where that fails
    before the start is reached, with the first frame: a seek may land too late, a key frame may not suffice.
    Raises ValueError with the source and the reason.
    """
    if start_seconds > SEEK_MARGIN_SECONDS:
        frames = _from_start_on(_from_key_frame(source, start_seconds), start_seconds)
        try:
            first = next(frames, None)
        except ValueError:
            first = None
        if first is not None and first[0] <= start_seconds + TIME_TOLERANCE:
            yield from chain([first], frames)
            return
    yield from _from_start_on(_from_first_frame(source), start_seconds)


def _from_start_on(frames: Iterator[TimedFrame], start_seconds: float) -> Iterator[TimedFrame]:
    """Without the frames that have left the screen at `start_seconds`."""
    before: TimedFrame | None = None
    for frame in frames:
        if before is not None and frame[0] > start_seconds + TIME_TOLERANCE:
            yield from chain([before, frame], frames)
            return
        before = frame
    if before is not None:
        yield before


def _from_first_frame(source: str | Path | bytes) -> Iterator[TimedFrame]:
    with _opened(source) as (container, stream):
        if not may_jump(container.format.flags):
            yield from _bounded(container, stream, stream_packets(container, stream), name_of(source), None)
            return
    clock = clock_of(source)
    with _opened(source) as (container, stream):
        packets = stream_packets(container, stream, clock)
        yield from _bounded(container, stream, packets, name_of(source), None)


def _from_key_frame(source: str | Path | bytes, start_seconds: float) -> Iterator[TimedFrame]:
    """From one before `start_seconds` on; nothing where the container cannot seek.

    Where the clock may jump no index leads to a time: the packets before the key frame are read, not decoded.
    """
    name = name_of(source)
    with _opened(source) as (container, stream):
        first = next(decoded(container, stream), None)
        if first is None:
            return
        origin = frame_time(first, name)
        if not may_jump(container.format.flags):
            try:
                container.seek(int((origin + start_seconds - SEEK_MARGIN_SECONDS) * av.time_base))
            except av.FFmpegError:
                return
            yield from _bounded(container, stream, stream_packets(container, stream), name, origin)
            return
    clock = clock_of(source)
    with _opened(source) as (container, stream):
        assert stream.time_base is not None
        key = clock.key_before(int((origin + start_seconds - SEEK_MARGIN_SECONDS) / stream.time_base))
        packets = islice(stream_packets(container, stream, clock), key, None)
        yield from _bounded(container, stream, packets, name, origin)


@contextmanager
def _opened(source: str | Path | bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """As `open_video`, with a decoder that refuses damage instead of painting over it."""
    with open_video(source) as (container, stream):
        stream.codec_context.options = {**BOUNDS, "err_detect": "explode"}
        yield container, stream


def _bounded(
    container: InputContainer, stream: VideoStream, packets: Iterator[Packet], name: str, origin: float | None
) -> Iterator[TimedFrame]:
    """What `timed_frames` gives, from here on, while it makes sense; `origin` None is the first frame."""
    before, begin = None, 0.0
    frames = decoded(container, stream, _intact(packets, name))
    for count, frame in enumerate(progressive(_intact(frames, name))):
        check_size(frame.width, frame.height, name)
        clock = frame_time(frame, name)
        if origin is None:
            origin = clock
        time = clock - origin
        if before is None:
            before = begin = time
        if not -1 <= time - before <= MAX_GAP_SECONDS or not time <= MAX_SECONDS:
            raise ValueError(f"{name}: jumps from {before:.4g} s to {time:.4g} s; {ADVICE}")
        if count > MAX_RATE * (time - begin + 10):
            raise ValueError(f"{name}: has {count} frames in {time - begin:.4g} s; {ADVICE}")
        before = max(before, time)
        yield before, hold_seconds(frame, stream), frame


T = TypeVar("T", Packet, VideoFrame)


def _intact(parts: Iterator[T], name: str) -> Iterator[T]:
    """The packets or frames, unless the container or the decoder marked one as damaged."""
    for part in parts:
        if part.is_corrupt:
            at = (
                ""
                if part.pts is None or part.time_base is None
                else f" at {float(part.pts * part.time_base):.2f} s"
            )
            raise ValueError(f"{name}: does not decode (damaged{at}); repair the file or leave it out")
        yield part

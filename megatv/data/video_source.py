"""Opens a video and hands out its frames in order of time, within bounds that no header can lift.

What a header claims is believed only as far as it is plausible: sizes, durations, gaps between frames and
the number of frames are bounded here, and whatever FFmpeg says against a file becomes one ValueError. Only
containers are read: a playlist, say, could make FFmpeg open other files.
"""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from megatv.data.video_picture import needs_care, progressive

TIME_TOLERANCE = 1e-3
"""Seconds. Containers such as Matroska round times to a millisecond, so times closer than this are equal."""
MIN_SIDE = 8
"""Pixels. Smaller pictures show nothing."""
MAX_PIXELS = 4096 * 2304
"""Pixels of one frame (4K). Larger claims would be allocated before they are found out."""
MAX_SECONDS = 24 * 3600.0
"""Seconds. The longest video, as its header or its frames' times say."""
MAX_GAP_SECONDS = 600.0
"""Seconds. The longest time between two frames."""
MAX_LAST_SECONDS = 10.0
"""Seconds. The last frame stays no longer, whatever it claims: no later frame bears it out."""
MAX_RATE = 1000
"""Frames a second, on average over a video; the first ten seconds' worth is free."""
MAX_ALLOCATION = 1 << 27
"""Bytes that FFmpeg may allocate at once: the largest pictures in 16 bits with alpha, or 24 hours' index."""
SEEK_MARGIN_SECONDS = 1.0
"""Seconds. Indexes go by decoding time, which runs some frames ahead of the time on screen."""
COUNTED = ("avi", "asf")
"""Containers that know when a frame is decoded, not when it is shown. FFmpeg makes times on screen up, in the
wrong order where H.264 has B-frames; the decoder gives the frames in the right one."""
CONTAINERS = "asf,avi,flv,gif,matroska,mov,mpeg,mpegts,mxf,ogg,webm,ivf,nut"
"""FFmpeg's demuxers that are tried."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are on screen, found without decoding more than the first one.

    codec      FFmpeg's name of it, such as "h264"
    seconds    float64 [F], ascending, from the first frame on
    end        seconds; the last frame leaves the screen
    rotation   degrees counter-clockwise that turn the stored picture upright
    colorspace FFmpeg's number of the YUV matrix that the first frame names
    care       why only PyAV shows this video rightly, or "" when every decoder does
    """

    codec: str
    seconds: np.ndarray
    end: float
    rotation: int
    colorspace: int
    care: str


def name_of(source: str | Path | bytes) -> str:
    """What messages call a source."""
    return "video bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def open_video(source: str | Path | bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the stream to show; PyAV's errors in the body become ValueErrors too."""
    name = name_of(source)
    file: io.BytesIO | str
    if isinstance(source, bytes):
        empty, file = not source, io.BytesIO(source)
    else:
        # absolute, since FFmpeg takes what comes before a colon for a protocol: `file:/etc/x` is no name here
        file = os.path.abspath(source)
        if os.path.exists(file) and not os.path.isfile(file):
            raise ValueError(f"{name}: is not a file; name a video")
        empty = os.path.isfile(file) and not os.path.getsize(file)
    if empty:
        raise ValueError(f"{name}: is empty (0 bytes); copy the file again or leave it out")
    try:
        with _open_container(file, name) as container:
            stream = _main_stream(container, name)
            _check_header(container, stream, name)
            yield container, stream
    except (av.FFmpegError, MemoryError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{name}: does not decode ({reason}); repair the file or leave it out") from error


def _open_container(file: io.BytesIO | str, name: str) -> InputContainer:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    _limit_allocations()
    try:  # _BOUNDS are for the frames that are decoded to find out what the streams are
        return av.open(file, "r", options=_BOUNDS, container_options=options, metadata_errors="ignore")
    except av.ArgumentError as error:  # EINVAL is what a format off the list ends in
        known = CONTAINERS.replace(",", ", ")
        raise ValueError(f"{name}: does not decode (none of {known}); write it anew as mp4") from error


@cache
def _limit_allocations() -> None:
    """Make FFmpeg refuse to allocate more than MAX_ALLOCATION at once, which PyAV does not offer.

    A count in an MP4's index may claim 80 million frames in 2 KB, for which FFmpeg would make 5 GB of tables.
    """
    for library in Path(av.__file__).parent.parent.glob("av.libs/libavutil*"):  # as the wheels have it
        ctypes.CDLL(str(library)).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION))


def _main_stream(container: InputContainer, name: str) -> VideoStream:
    """What a player would show: the stream marked as default, else the first, and never cover art."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise ValueError(f"{name}: has no video stream; leave it out")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the header says that the video lasts, in seconds; None when it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def timed_frames(
    source: str | Path | bytes, start_seconds: float = 0.0
) -> Iterator[tuple[float, float, VideoFrame]]:
    """(time, hold, frame) in order of time, from the frame on screen at `start_seconds` or earlier on.

    Times are seconds from the video's first frame; hold says for how many seconds the frame stays on screen
    if no other one follows. Interlaced frames arrive deinterlaced. Where a seek lands
    too late, as it may in transport streams, everything is decoded from the start instead.
    """
    if start_seconds > SEEK_MARGIN_SECONDS:
        with open_video(source) as (container, stream):
            frames = _after_seek(container, stream, name_of(source), start_seconds)
            first = next(frames, None)
            if first is not None and first[0] <= start_seconds + TIME_TOLERANCE:
                yield first
                yield from frames
                return
    with open_video(source) as (container, stream):
        # Refuse damage instead of painting over it; not after a seek, where an open GOP lacks references.
        stream.codec_context.options = {**_BOUNDS, "err_detect": "explode"}
        yield from _bounded(container, stream, name_of(source), None)


def read_timeline(source: str | Path | bytes) -> Timeline:
    """The times of all frames, from the packets. Raises ValueError with the source and the reason."""
    name = name_of(source)
    with open_video(source) as (container, stream):
        stream.codec_context.options = _BOUNDS
        first = next(_decoded(container, stream), None)
        if first is None:
            raise ValueError(f"{name}: holds no frames; make the file again or leave it out")
        check_size(first.width, first.height, name)
        codec, origin = stream.codec_context.name, frame_time(first, name)
    with open_video(source) as (container, stream):
        packets = [packet for packet in _packets(container, stream) if packet.size]
        shown = [packet for packet in packets if packet.pts is not None and not packet.is_discard]
        seconds = np.array([float((p.pts or 0) * (p.time_base or 0)) for p in shown], np.float64)
        several = "one of several video streams" if len(container.streams.video) > 1 else ""
        care = needs_care(first) or several
        if not shown or len(shown) < len(packets) or abs(seconds.min() - origin) > TIME_TOLERANCE:
            care = care or "packets without times or pictures"
            return Timeline(codec, np.zeros(1), TIME_TOLERANCE, first.rotation, int(first.colorspace), care)
        last = shown[int(seconds.argmax())]
        seconds = np.sort(seconds) - origin
        _check_times(seconds, name)
        end = seconds[-1] + _hold_seconds(last, stream)
        return Timeline(codec, seconds, float(end), first.rotation, int(first.colorspace), care)


def frame_time(frame: VideoFrame, name: str) -> float:
    """Seconds on the container's clock."""
    if frame.time is None:
        raise ValueError(f"{name}: has frames without times; write it anew with `ffmpeg -i IN OUT.mp4`")
    return frame.time


def check_size(width: int, height: int, name: str) -> None:
    """ValueError unless pictures of this size are worth decoding and may be."""
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"{name}: has pictures of {width}x{height}; sides of {MIN_SIDE} pixels or more and at most "
            f"{MAX_PIXELS} pixels in all are decoded: scale it with `ffmpeg -i IN -vf scale=-2:1080 OUT.mp4`"
        )


_BOUNDS = {"max_pixels": str(MAX_PIXELS)}


def _check_header(container: InputContainer, stream: VideoStream, name: str) -> None:
    context = stream.codec_context
    if context is None:
        raise ValueError(f"{name}: is in a codec that FFmpeg does not know; write it anew as H.264")
    if stream.metadata.get("alpha_mode") == "1":
        raise ValueError(
            f"{name}: has a transparency of its own beside VP8 or VP9, which is not read; write it anew with "
            "`ffmpeg -c:v libvpx-vp9 -i IN -vf premultiply=inplace=1 -pix_fmt yuv420p OUT.mp4`"
        )
    if context.width and context.height:  # unknown, in some containers, before a frame is decoded
        check_size(context.width, context.height, name)
    seconds = header_seconds(container, stream)
    if seconds is not None and not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{name}: claims to last {seconds:.4g} s; {_ADVICE}")


_ADVICE = (
    f"at most {MAX_SECONDS / 3600:.0f} hours are read, with gaps of at most {MAX_GAP_SECONDS:.0f} s and "
    f"fewer than {MAX_RATE} frames a second: write it anew with `ffmpeg -i IN OUT.mp4`, or cut it"
)


def _check_times(seconds: np.ndarray, name: str) -> None:
    """ValueError unless these times of frames, ascending from 0, lie within the bounds."""
    if np.diff(seconds).max(initial=0.0) > MAX_GAP_SECONDS or seconds[-1] > MAX_SECONDS:
        raise ValueError(f"{name}: has frames up to {seconds[-1]:.4g} s with long gaps; {_ADVICE}")
    if len(seconds) > MAX_RATE * (seconds[-1] + 10):
        raise ValueError(f"{name}: has {len(seconds)} frames in {seconds[-1]:.4g} s; {_ADVICE}")


def _hold_seconds(last: VideoFrame | Packet, stream: VideoStream) -> float:
    """How long the last frame stays: its own duration, or one period of the stream's mean rate."""
    seconds = 0.0
    if last.duration and last.time_base:
        seconds = float(last.duration * last.time_base)
    elif stream.average_rate:
        seconds = float(1 / stream.average_rate)
    return min(max(seconds, 2 * TIME_TOLERANCE), MAX_LAST_SECONDS)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Those of the stream. PyAV's own generator frees its buffers only when it is closed or has ended."""
    with closing(cast("Generator[Packet]", container.demux(stream))) as packets:
        yield from packets


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The stream's frames as they are shown; `container.decode` would leak where it is left early."""
    counted, clock = container.format.name in COUNTED, None
    for packet in _packets(container, stream):
        for frame in packet.decode():
            if counted:  # the last frames come without a decoding time, each a duration later
                later = None if clock is None else clock + frame.duration
                clock = frame.pts = later if frame.dts is None else frame.dts
            yield frame


def _after_seek(
    container: InputContainer, stream: VideoStream, name: str, start_seconds: float
) -> Iterator[tuple[float, float, VideoFrame]]:
    """Frames from a key frame before `start_seconds` on; none where the container cannot seek."""
    stream.codec_context.options = _BOUNDS
    first = next(_decoded(container, stream), None)
    if first is None:
        return
    origin = frame_time(first, name)
    try:
        container.seek(int((origin + start_seconds - SEEK_MARGIN_SECONDS) * av.time_base))
    except av.FFmpegError:
        return
    yield from _bounded(container, stream, name, origin)


def _bounded(
    container: InputContainer, stream: VideoStream, name: str, origin: float | None
) -> Iterator[tuple[float, float, VideoFrame]]:
    """What `timed_frames` gives, from here on, while it makes sense; `origin` None is the first frame."""
    before, begin = None, 0.0
    for count, frame in enumerate(progressive(_decoded(container, stream))):
        check_size(frame.width, frame.height, name)
        clock = frame_time(frame, name)
        if origin is None:
            origin = clock
        time = clock - origin
        if before is None:
            before = begin = time
        if not -1 <= time - before <= MAX_GAP_SECONDS or not time <= MAX_SECONDS:
            raise ValueError(f"{name}: jumps from {before:.4g} s to {time:.4g} s; {_ADVICE}")
        if count > MAX_RATE * (time - begin + 10):
            raise ValueError(f"{name}: has {count} frames in {time - begin:.4g} s; {_ADVICE}")
        before = max(before, time)
        yield before, _hold_seconds(frame, stream), frame

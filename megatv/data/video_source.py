"""Opens a video and says what it is, within bounds that no header can lift; `video_frames` decodes it.

What a header claims is believed only as far as it is plausible: sizes, durations, gaps between frames and
the number of frames are bounded here, and whatever FFmpeg says against a file becomes one ValueError. Only
containers are read: a playlist, say, could make FFmpeg open other files.
"""

from __future__ import annotations

import ctypes
import io
import os
from array import array
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
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from megatv.data.video_clock import Clock, may_jump, read_clock
from megatv.data.video_picture import needs_care

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
RATE_TOLERANCE = 0.01
"""How far a header's rate may be from the one that is counted, as a share of it, and still be believed."""
MAX_RATE = 1000
"""Frames a second, on average from the first packet to any other; the first ten seconds' worth is free."""
MAX_FRAMES = 10_000_000
"""Of one video: 24 hours at 115 frames a second, whose times take 80 MB."""
MAX_ALLOCATION = 1 << 27
"""Bytes that FFmpeg may allocate at once: the largest pictures in 16 bits with alpha, or 24 hours' index."""
COUNTED = ("avi", "asf")
"""Containers that know when a frame is decoded, not when it is shown. FFmpeg makes times on screen up, in the
wrong order where H.264 has B-frames; the decoder gives the frames in the right one."""
CONTAINERS = "asf,avi,flv,gif,matroska,mov,mpeg,mpegts,mxf,ogg,webm,ivf,nut"
"""FFmpeg's demuxers that are tried."""


@dataclass(frozen=True)
class Timeline:
    """What a video is and when its frames are on screen, found without decoding more than the first one.

    codec      FFmpeg's name of it, such as "h264"
    width      of the picture as it is shown, in pixels: upright, and widened where pixels are not square
    height     likewise
    rate       mean frames a second
    seconds    float64 [F], ascending, from the first frame on
    end        seconds; the last frame leaves the screen
    begins     seconds from where a player starts to count (the first sound or picture) to the first frame
    rotation   degrees counter-clockwise that turn the stored picture upright
    colorspace FFmpeg's number of the YUV matrix that the first frame names
    care       why only PyAV shows this video rightly, or "" when every decoder does
    """

    codec: str
    width: int
    height: int
    rate: float
    seconds: np.ndarray
    end: float
    begins: float
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
    try:  # BOUNDS are for the frames that are decoded to find out what the streams are
        return av.open(file, "r", options=BOUNDS, container_options=options, metadata_errors="ignore")
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


def read_timeline(source: str | Path | bytes) -> Timeline:
    """What a video is, from its first frame and the times of all packets; no header is asked how long it is.

    Raises ValueError with the source and the reason.
    """
    name = name_of(source)
    with open_video(source) as (container, stream):
        stream.codec_context.options = BOUNDS
        first = next(decoded(container, stream), None)
        if first is None:
            raise ValueError(f"{name}: holds no frames; make the file again or leave it out")
        check_size(first.width, first.height, name)
        codec, origin = stream.codec_context.name, frame_time(first, name)
        width, height = _shown_size(first, stream)
        check_size(width, height, name)
        begins = origin - container.start_time / av.time_base if container.start_time is not None else 0.0
        jumps = may_jump(container.format.flags)
    clock = clock_of(source) if jumps else None
    with open_video(source) as (container, stream):
        counted = container.format.name in COUNTED
        found = array("d")  # when packets are shown
        earliest = np.inf
        last = (-np.inf, 0.0)  # when the latest is, and how long its frame stays
        packets = hidden = 0
        torn = False  # whether the last packet with data is a part of one
        for packet in stream_packets(container, stream, clock):
            packets += packet.size > 0
            torn = packet.is_corrupt if packet.size else torn
            ticks = packet.dts if counted or packet.pts is None else packet.pts
            if packet.size and ticks is not None and packet.time_base and not packet.is_discard:
                hidden += packet.pts is None
                time = float(ticks * packet.time_base)
                found.append(time)
                earliest, last = min(earliest, time), max(last, (time, hold_seconds(packet, stream)))
                _check_count(len(found), last[0] - earliest, name)
        several = "one of several video streams" if len(container.streams.video) > 1 else ""
        header_rate = float(stream.average_rate or 0)
    if torn:
        at = f"ends within a frame at {last[0] - earliest:.2f} s"
        raise ValueError(f"{name}: does not decode ({at}); copy the whole file again or leave it out")
    if counted and found:  # the decoder gives the first frame later than it gets the first packet
        origin = earliest
    seconds = np.sort(found) - origin
    seconds = seconds[seconds >= -TIME_TOLERANCE]
    if not len(seconds):
        raise ValueError(f"{name}: has frames without times; write it anew with `ffmpeg -i IN OUT.mp4`")
    _check_times(seconds, name)
    care = needs_care(first) or several
    if hidden or counted or len(seconds) < packets or abs(seconds[0]) > TIME_TOLERANCE:
        care = care or "packets without times or pictures"
    end = float(seconds[-1] + last[1])
    rate = len(seconds) / end
    if abs(header_rate - rate) <= RATE_TOLERANCE * rate:  # times may be rounded; a rate borne out is not
        rate = header_rate
    return Timeline(
        codec,
        width,
        height,
        rate,
        seconds,
        end,
        max(0.0, begins),
        first.rotation,
        int(first.colorspace),
        care,
    )


def clock_of(source: str | Path | bytes) -> Clock:
    """The clock of a source whose container `may_jump`; it reads all packets and decodes none."""
    with open_video(source) as (container, stream):
        return read_clock(_read(container, stream, *container.streams.audio), stream)


def stream_packets(
    container: InputContainer, stream: VideoStream, clock: Clock | None = None
) -> Iterator[Packet]:
    """Those of the stream, on `clock` where it has one."""
    packets = _read(container, stream)
    return clock.apply(packets) if clock else packets


def _read(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Packets of the streams. PyAV's own generator frees its buffers only when it is closed or has ended."""
    with closing(cast("Generator[Packet]", container.demux(*streams))) as packets:
        try:
            yield from packets
        except IndexError:  # PyAV's, at the end of a file in which more streams appeared on the way
            return


def decoded(
    container: InputContainer, stream: VideoStream, packets: Iterator[Packet] | None = None
) -> Iterator[VideoFrame]:
    """The stream's frames as they are shown; `container.decode` would leak where it is left early.

    Packets begin with a key frame, or, in a recording cut anywhere, soon come to one. What fails before it,
    or is to be shown before it, refers to pictures that are not there, and is left out.
    """
    counted = container.format.name in COUNTED
    clock: int | None = None
    key: int | None = None
    at_key = False
    for packet in packets or stream_packets(container, stream):
        if packet.is_keyframe and not at_key:
            at_key, key = True, None if counted else packet.pts
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if at_key and (key is None or packet.pts is None or packet.pts >= key):
                raise
            continue
        for frame in frames:
            if counted:  # the last frames come without a decoding time, each a duration later
                later = None if clock is None else clock + frame.duration
                clock = frame.pts = later if frame.dts is None else frame.dts
            if key is None or frame.pts is None or frame.pts >= key:
                yield frame


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


BOUNDS = {"max_pixels": str(MAX_PIXELS)}


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
    seconds = 0.0 if may_jump(container.format.flags) else _claimed_seconds(container, stream)
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{name}: claims to last {seconds:.4g} s; {ADVICE}")


ADVICE = (
    f"at most {MAX_SECONDS / 3600:.0f} hours are read, with gaps of at most {MAX_GAP_SECONDS:.0f} s and "
    f"fewer than {MAX_RATE} frames a second, {MAX_FRAMES:,} in all: write it anew with "
    "`ffmpeg -i IN OUT.mp4`, or cut it"
)


def _claimed_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long the header says that the video lasts, in seconds; 0 when it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _shown_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) of the picture that a player shows: pixels squared by their width, then turned."""
    width, height = max(1, round(frame.width * (stream.sample_aspect_ratio or 1))), frame.height
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


def _check_times(seconds: np.ndarray, name: str) -> None:
    """ValueError unless these times of frames, ascending from 0, lie within the bounds."""
    if np.diff(seconds).max(initial=0.0) > MAX_GAP_SECONDS or seconds[-1] > MAX_SECONDS:
        raise ValueError(f"{name}: has frames up to {seconds[-1]:.4g} s with long gaps; {ADVICE}")
    _check_count(len(seconds), seconds[-1], name)


def _check_count(count: int, span: float, name: str) -> None:
    """ValueError unless so many frames, the last `span` seconds after the first, lie within the bounds."""
    if count > min(MAX_FRAMES, MAX_RATE * (span + 10)):
        raise ValueError(f"{name}: has {count:,} frames or more in {span:.4g} s; {ADVICE}")


def hold_seconds(last: VideoFrame | Packet, stream: VideoStream) -> float:
    """How long the last frame stays: its own duration, or one period of the stream's mean rate."""
    seconds = 0.0
    if last.duration and last.time_base:
        seconds = float(last.duration * last.time_base)
    elif stream.average_rate:
        seconds = float(1 / stream.average_rate)
    return min(max(seconds, 2 * TIME_TOLERANCE), MAX_LAST_SECONDS)

"""Packets of a few bytes may come by the million: each costs little, and too many are refused early."""

import io
import struct
import sys
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from megatv.data import video_clock, video_source
from megatv.data.video_clock import read_clock
from megatv.data.video_source import read_timeline


def crowded(times: range | list[int]) -> bytes:
    """An IVF file of one VP8 frame at 0 and one byte for a frame at each of `times`, in milliseconds."""
    with av.open(file := io.BytesIO(), "w", format="ivf") as out:
        stream = out.add_stream("libvpx", 16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 99, np.uint8), format="rgb24")
        out.mux([*stream.encode(frame), *stream.encode()])
    data = bytearray(file.getvalue())
    data[16:28] = struct.pack("<3I", 1000, 1, 1 + len(times))
    return bytes(data) + b"".join(struct.pack("<IQ", 1, time) + b"\1" for time in times)


@pytest.fixture
def read(monkeypatch):
    """A list that grows by one whenever a packet of a video is read."""
    counted: list[int] = []
    real = video_source._read

    def counting(*given):
        for packet in real(*given):
            counted.append(1)
            yield packet

    monkeypatch.setattr(video_source, "_read", counting)
    return counted


def test_too_many_frames_for_their_time_are_refused_at_once(read):
    with pytest.raises(ValueError, match=r"has 1\d,\d{3} frames or more in 0\.001 s; at most 24 hours"):
        read_timeline(crowded([1] * 40_000))
    assert len(read) < 10_100


def test_a_video_has_a_largest_number_of_frames(read, monkeypatch):
    data = crowded(range(100, 100_000, 100))
    assert len(read_timeline(data).seconds) == 1000
    read.clear()
    monkeypatch.setattr(video_source, "MAX_FRAMES", 100)
    with pytest.raises(ValueError, match=r"has 101 frames or more in 10 s; .* 10,000,000 in all"):
        read_timeline(data)
    assert len(read) < 110


def test_a_frame_takes_a_few_bytes_while_times_are_read():
    data = crowded(range(1, 10_001))
    tracemalloc.start()
    try:
        assert len(read_timeline(data).seconds) == 10_001
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()


VIDEO = SimpleNamespace(type="video", time_base=Fraction(1, 1000))
SOUND = SimpleNamespace(type="audio")


def packet(stream, milliseconds: int) -> SimpleNamespace:
    return SimpleNamespace(
        stream=stream,
        dts=milliseconds,
        pts=milliseconds,
        duration=40,
        time_base=Fraction(1, 1000),
        is_keyframe=False,
        is_corrupt=False,
    )


def opcodes(packets: list[SimpleNamespace]) -> int:
    """How many instructions of `video_clock` run to read the clock of these packets."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != video_clock.__file__:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read_clock(packets, VIDEO)
    finally:
        sys.settrace(before)
    return count


def test_sound_far_ahead_is_not_walked_for_each_picture():
    def ahead(count: int) -> list[SimpleNamespace]:
        sound = [packet(SOUND, 10**7 + k) for k in range(count)]
        return sound + [packet(VIDEO, 40 * k) for k in range(count)]

    assert opcodes(ahead(400)) < 3 * opcodes(ahead(200))


def test_sound_may_come_in_any_order_and_only_so_much_is_remembered(monkeypatch):
    def shifts(*heard: int) -> tuple:
        sound = [packet(SOUND, time) for time in heard]
        return read_clock([packet(VIDEO, 0), *sound, packet(VIDEO, 5000), packet(VIDEO, 5040)], VIDEO).shifts

    stays, jumps = ((0, 0),), ((0, 0), (1, 40 - 5000))
    assert shifts(9000, 2500, 7000, 100) == stays  # sound at 2.5 s, within the hole
    assert shifts(9000, 500, 4800) == jumps
    monkeypatch.setattr(video_clock, "MAX_HEARD", 1)
    assert shifts(9000, 2500, 7000) == stays  # the nearest is remembered
    assert shifts(9000, 2500, 7000, 100) == jumps

"""The clock is the stream's: files joined with jumps, sound that is longer or earlier, rates and lengths."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from megatv.data.video import decode_frames, iterate_video, probe
from megatv.data.video_source import read_timeline

H, W, FPS = 48, 80, 16
"""Five columns, a bit of a frame's number each."""


def numbered(numbers) -> list[np.ndarray]:
    """Pictures that tell their number, 0 to 31, after any lossy trip."""
    bits = [[n >> bit & 1 for bit in range(5)] for n in numbers]
    return [
        np.repeat(np.repeat([row], H, 0), W // 5, 1).astype(np.uint8)[..., None] * [[[220] * 3]]
        for row in bits
    ]


def number(picture: np.ndarray) -> int:
    columns = picture[H // 2, W // 10 :: W // 5].mean(-1) > 110
    return int(columns @ (1 << np.arange(5)))


def write(
    numbers, container="mpegts", *, offset=0.0, sound=None, codec="libx264", options=None, times=None
) -> bytes:
    """A video of these numbers at 16 fps, or at `times`; sound: (from, to) in seconds of a silent track."""
    with av.open(
        file := io.BytesIO(), "w", format=container, options={"output_ts_offset": str(offset)}
    ) as out:
        coding = options or {"crf": "10", "x264-params": "keyint=8:bframes=2"}
        stream = out.add_stream(codec, FPS, options=coding)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if times else FPS)
        track = (
            out.add_stream("aac" if container == "mp4" else "mp2", 32000, layout="mono") if sound else None
        )
        packets = []
        for index, picture in enumerate(numbered(numbers)):
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.pts = times[index] if times else index
            frame.time_base = stream.codec_context.time_base
            packets += stream.encode(frame)
        packets += stream.encode()
        if track and sound:
            for begin in range(int(sound[0] * 32000), int(sound[1] * 32000), 1152):
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1152), np.float32 if container == "mp4" else np.int16),
                    format="fltp" if container == "mp4" else "s16p",
                    layout="mono",
                )
                silence.sample_rate, silence.pts, silence.time_base = 32000, begin, Fraction(1, 32000)
                packets += track.encode(silence)
            packets += track.encode()
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    return file.getvalue()


def shown(data: bytes, start: float = 0.0) -> list[int]:
    return [number(picture) for picture in iterate_video(data, width=W, height=H, start_seconds=start)]


@pytest.mark.parametrize("sound", [None, (0, 1)], ids=["silent", "sound"])
@pytest.mark.parametrize("step", [300, 60, 5, -0.3, -0.5, -1.0, -20], ids=str)
def test_joined_transport_streams_play_on_without_a_hole(step, sound):
    """What the second file's clock says, forward or back, no picture is left out or stands for long."""
    first = write(range(16), offset=20, sound=sound)
    data = first + write(range(16, 32), offset=21 + step, sound=sound)
    assert shown(data) == list(range(32))
    assert shown(data, 1.5) == list(range(24, 32))  # a start beyond the jump
    assert number(decode_frames(data, [1.75], width=W, height=H)[0].numpy()) == 28
    assert probe(data).seconds == pytest.approx(2.0, abs=0.02)
    assert np.allclose(read_timeline(data).seconds, np.arange(32) / FPS, atol=0.011)


def test_a_hole_in_which_the_sound_goes_on_stays():
    """Pictures are missing for 5 s, the clock has not jumped: the last one stands meanwhile."""
    times = [round(1000 * k / FPS) for k in range(16)] + [round(6000 + 1000 * k / FPS) for k in range(16)]
    data = write(range(32), times=times, sound=(0, 7))
    assert probe(data).seconds == pytest.approx(7.0, abs=0.1)
    assert shown(data) == [*range(16), *[15] * 80, *range(16, 32)]


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
def test_longer_sound_is_no_video(container):
    data = write(range(16), container, sound=(0, 4))
    info = probe(data)
    assert info.seconds == pytest.approx(1.0, abs=0.02) and info.rate == pytest.approx(16, rel=0.01)
    assert shown(data) == list(range(16))


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
def test_times_count_from_the_first_picture_and_sound_before_it_is_told(container):
    times = [500 + round(1000 * k / FPS) for k in range(16)]
    late, prompt = (write(range(16), container, times=t, sound=(0, 2)) for t in (times, None))
    assert read_timeline(late).begins == pytest.approx(0.5, abs=0.08)
    assert read_timeline(prompt).begins == pytest.approx(0.0, abs=0.08)
    assert shown(late) == list(range(16)) and probe(late).seconds == pytest.approx(1.0, abs=0.07)


def test_the_rate_is_what_the_frames_bear_out():
    """A stream that says 16 fps and shows a frame every 250 ms has 4 of them a second."""
    data = write(range(8), "matroska", times=[250 * k for k in range(8)])
    assert probe(data).rate == pytest.approx(4, rel=0.15)
    assert probe(write(range(16), "mp4")).rate == 16


@pytest.mark.parametrize("begin", [0.0, 1.5])
def test_streams_may_appear_on_the_way(begin):
    """A recording without sound, then one with it, in another program: PyAV knows the first streams only."""
    data = write(range(16), offset=20) + write(range(16, 32), offset=30, sound=(0, 1))
    assert shown(data, begin) == list(range(round(begin * FPS), 32))
    assert probe(data).seconds == pytest.approx(2.0, abs=0.02)

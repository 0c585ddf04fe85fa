"""Frames are picked by time, whatever the input's rate; damage ends in a sentence."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.data.video import decode_video, iterate_video, probe, write_video

CLIPS = Path(__file__).parents[2] / "../shared/clips"
GRID = 6  # bits of a frame number, painted as black and white columns


def numbered(count: int, height: int = 48, width: int = 96) -> np.ndarray:
    """Frames that carry their own number in six columns, readable after any lossy trip."""
    bits = (np.arange(count)[:, None] >> np.arange(GRID)) & 1
    columns = np.repeat(bits * 255, width // GRID, axis=1).astype(np.uint8)
    return np.broadcast_to(columns[:, None, :, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The inverse of `numbered`, from frames of any size."""
    centres = (np.arange(GRID) * 2 + 1) * frames.shape[2] // (2 * GRID)
    bits = frames[:, frames.shape[1] // 2, centres].mean(-1) > 127
    return [int(b) for b in bits @ (1 << np.arange(GRID))]


def write_with_times(path: Path, milliseconds: list[float], x264: str = "bframes=2") -> None:
    """A video of numbered frames at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 1000, options={"x264-params": x264})
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 2000)
        for time, picture in zip(milliseconds, numbered(len(milliseconds)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 2), Fraction(1, 2000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def on_screen(times: list[float], instant: float) -> int:
    """Oracle: number of the last frame that is not later than the instant (a millisecond of grace)."""
    return max(i for i, time in enumerate(times) if time <= instant + 1e-3)


def test_what_is_written_is_read_back(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = np.stack([np.stack([np.tile(np.roll(ramp, 2 * i), (32, 1))] * 3, -1) for i in range(20)])
    write_video(tmp_path / "a.mp4", frames)
    back = decode_video(tmp_path / "a.mp4", width=64, height=32)
    assert back.shape == frames.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).mean() < 3
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.rate, info.seconds) == (64, 32, 16, 20 / 16)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("rate", [8, 16, 24, 25, Fraction(30000, 1001), 60])
def test_any_rate_becomes_sixteen_without_drift(tmp_path, rate):
    write_video(tmp_path / "a.mp4", numbered(60), fps=rate)
    found = numbers(decode_video(tmp_path / "a.mp4", width=48, height=24))
    times = [float(i / rate) for i in range(60)]
    assert len(found) == pytest.approx(float(60 / rate * 16), abs=1)
    assert found == [on_screen(times, k / 16) for k in range(len(found))]


@settings(max_examples=15, deadline=None)
@given(gaps=st.lists(st.integers(5, 200), min_size=3, max_size=30), start=st.floats(0, 0.3))
def test_variable_rate_follows_the_clock(tmp_path_factory, gaps, start):
    path = tmp_path_factory.mktemp("vfr") / "a.mkv"
    times = [0, *np.cumsum(gaps).tolist()]
    write_with_times(path, times)
    start = min(start, times[-1] / 2000)
    found = numbers(np.stack(list(iterate_video(path, width=96, height=48, start_seconds=start))))
    seconds = [t / 1000 for t in times]
    assert found == [on_screen(seconds, start + k / 16) for k in range(len(found))]
    assert len(found) >= (times[-1] / 1000 - start) * 16 - 0.1


def test_sixteen_fps_is_untouched_where_times_are_rounded_to_milliseconds(tmp_path):
    write_with_times(tmp_path / "a.mkv", [round(i * 62.5) for i in range(40)])
    assert numbers(decode_video(tmp_path / "a.mkv", width=96, height=48))[:40] == list(range(40))


@pytest.mark.parametrize("seconds", [0.0, 0.0625, 1.0, 1.5, 2.5, 3.6875])
@pytest.mark.parametrize(
    "gop", ["open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0", "keyint=250"]
)
def test_a_start_in_the_middle_gives_the_same_frames(tmp_path, seconds, gop):
    write_with_times(tmp_path / "a.mp4", [i * 62.5 for i in range(60)], gop)
    cut = decode_video(tmp_path / "a.mp4", width=96, height=48, start_seconds=seconds, frames=1)
    assert numbers(cut) == [int(seconds * 16)]


def test_bytes_and_path_agree(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(20))
    by_path = decode_video(tmp_path / "a.mp4", width=48, height=24, start_seconds=0.5)
    by_bytes = decode_video((tmp_path / "a.mp4").read_bytes(), width=48, height=24, start_seconds=0.5)
    assert np.array_equal(by_path, by_bytes)


def test_size_changes_without_letterboxing(tmp_path):
    frames = np.zeros((4, 48, 96, 3), np.uint8)
    frames[:, :, :48], frames[:, 24:, 48:] = 255, 128
    write_video(tmp_path / "a.mp4", frames)
    for width, height in ((24, 24), (192, 96)):
        picture = decode_video(tmp_path / "a.mp4", width=width, height=height)[0].astype(int)
        corners = [picture[y, x].mean() for y in (2, -3) for x in (2, -3)]
        assert corners == pytest.approx([255, 0, 255, 128], abs=4)


def test_rotation_metadata_turns_the_picture(tmp_path):
    """A phone held upright stores lying pictures and a matrix that turns them clockwise."""
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, :16] = 255  # a white stripe on the left: at the top after the turn
    write_video(tmp_path / "a.mp4", frames)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30]
    data[at : at + 36] = np.array(matrix, ">i4").tobytes()
    picture = decode_video(bytes(data), width=32, height=64)[0]
    assert picture[:12].mean() > 240 and picture[20:].mean() < 15


def test_asking_beyond_the_end_is_refused(tmp_path):
    write_video(tmp_path / "short.mp4", numbered(10))
    with pytest.raises(
        ValueError, match=r"short\.mp4: is shorter than asked, it has 6 frames .* instead of 7"
    ):
        decode_video(tmp_path / "short.mp4", width=48, height=24, start_seconds=0.25, frames=7)
    with pytest.raises(ValueError, match="shorter than asked"):
        decode_video(tmp_path / "short.mp4", width=48, height=24, start_seconds=9.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"not a video at all" * 50, "does not decode"),
        (lambda data: data[: len(data) // 2], "does not decode"),
        (lambda data: bytes(b ^ (i > 9000 and i % 97 == 0) for i, b in enumerate(data)), "does not decode"),
    ],
    ids=["empty", "garbage", "truncated", "flipped"],
)
def test_damage_is_named(tmp_path, damage, message):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 96, 3)).astype(np.uint8)
    write_video(tmp_path / "good.mp4", noise)
    (tmp_path / "bad.mp4").write_bytes(damage((tmp_path / "good.mp4").read_bytes()))
    with pytest.raises(ValueError, match=rf"bad\.mp4: .*{message}.*; "):
        decode_video(tmp_path / "bad.mp4", width=96, height=48)


def test_a_file_cut_off_is_no_short_video(tmp_path):
    """An mp4 whose index comes first opens when it is half there, and its packets are fewer."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 96, 3)).astype(np.uint8)
    write_video(tmp_path / "whole.mp4", noise)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: 2 * len(data) // 3])
    with pytest.raises(ValueError, match=r"cut\.mp4: does not decode \(ends within a frame at \d"):
        probe(tmp_path / "cut.mp4")


def test_missing_file_and_sound_only_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.mp4: does not decode \(No such file"):
        probe(tmp_path / "none.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", 8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"sound\.mkv: has no video stream"):
        probe(tmp_path / "sound.mkv")


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="even width and height, got 33x32"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 32, 33, 3), np.uint8))
    with pytest.raises(ValueError, match="must be uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 32, 32, 3), np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")
@pytest.mark.parametrize(
    ("clip", "frames"), [("arm_wrestling", 160), ("basketball", 161), ("still_face", 64)]
)
def test_real_clips_decode_at_sixteen_fps(clip, frames):
    video = decode_video(CLIPS / f"{clip}.mp4", width=320, height=192)
    assert video.shape == (frames, 192, 320, 3)
    assert 20 < video.mean() < 235 and video.std() > 20
    middle = decode_video(CLIPS / f"{clip}.mp4", width=320, height=192, start_seconds=2.0, frames=3)
    assert np.array_equal(middle, video[32:35])

"""Videos as cameras, studios and the web make them: each kind is written here and must be shown rightly."""

import io
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from megatv.data.video import decode_frames, decode_video, iterate_video
from megatv.data.video_hdr import HLG, PQ, tone_map

H, W = 64, 96


def write(
    planes,
    *,
    codec="libx264",
    container="matroska",
    stored="yuv420p",
    given="rgb24",
    options=None,
    tags=None,
    rotation=0,
    first_ms=0,
    sound=False,
) -> bytes:
    """A video of these arrays (of format `given`) at 16 fps from `first_ms` on; tags go on every frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, 16, options=options or {"crf": "4"})
        stream.width, stream.height = planes[0].shape[1], planes[0].shape[0]
        if given == "yuv444p":
            stream.width, stream.height = planes[0].shape[2], planes[0].shape[1]
        stream.pix_fmt, stream.codec_context.time_base = stored, Fraction(1, 16000)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        track = out.add_stream("pcm_s16le", 8000, layout="mono") if sound else None
        for index, plane in enumerate(planes):
            frame = av.VideoFrame.from_ndarray(plane, format=given)
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            frame = frame.reformat(format=stored)
            frame.pts, frame.time_base = index * 1000 + first_ms * 16, Fraction(1, 16000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if track:
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            noise.sample_rate = 8000
            out.mux(track.encode(noise))
    return file.getvalue()


def quarters(height: int = H, width: int = W) -> np.ndarray:
    """White above left, red above right, blue below left, black below right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255
    picture[: height // 2, width // 2 :, 0] = 255
    picture[height // 2 :, : width // 2, 2] = 255
    return picture


def colours(picture: np.ndarray) -> list[tuple[int, ...]]:
    """The colours at the middles of the four quarters, in reading order."""
    h, w = picture.shape[:2]
    return [tuple(int(v) for v in picture[y, x]) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def near(found, expected, tolerance=6):
    assert np.abs(np.array(found, int) - np.array(expected, int)).max() <= tolerance, found


WHITE, RED, BLUE, BLACK = (255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0)
ALL = [WHITE, RED, BLUE, BLACK]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(90, [RED, BLACK, WHITE, BLUE]), (180, ALL[::-1]), (-90, [BLUE, WHITE, BLACK, RED])],
)
def test_rotation_is_counter_clockwise(degrees, expected):
    data = write([quarters()] * 3, container="mp4", rotation=degrees)
    size = (W, H) if degrees == 180 else (H, W)
    near(colours(decode_video(data, width=size[0], height=size[1])[0]), expected)


@pytest.mark.parametrize(
    ("codec", "stored"), [("libvpx-vp9", "yuv420p"), ("libx264", "yuv444p"), ("ffv1", "yuv422p")]
)
def test_odd_sizes(codec, stored):
    options = {"crf": "4", "b:v": "0", "deadline": "realtime"} if codec == "libvpx-vp9" else {}
    data = write([quarters(61, 97)] * 3, codec=codec, stored=stored, options=options)
    near(colours(decode_video(data, width=96, height=64)[0]), ALL)


@pytest.mark.parametrize(
    ("codec", "stored", "options"),
    [
        ("libx265", "yuv420p10le", {"x265-params": "log-level=none:crf=4"}),
        ("libx264", "yuv422p10le", {"crf": "4"}),
        ("libsvtav1", "yuv420p10le", {"crf": "10", "preset": "10", "svtav1-params": "lp=1"}),
    ],
)
def test_ten_bits_become_eight(codec, stored, options):
    policy = os.sched_getscheduler(0)
    data = write([quarters()] * 3, codec=codec, stored=stored, options=options)
    # SVT-AV1, run by root, makes its caller a real-time process, and so whatever that starts later: ranks
    # that poll for each other then keep each other from the cores for minutes
    os.sched_setscheduler(0, policy, os.sched_param(0))
    near(colours(decode_video(data, width=W, height=H)[0]), ALL)


def test_transparency_shows_black_and_hidden_colours_do_not_bleed():
    rgba = np.full((H, W, 4), 255, np.uint8)
    rgba[:, :48, 3] = 0  # hidden white
    rgba[:, 48:72, 3] = 128
    data = write([rgba] * 2, codec="qtrle", container="mov", stored="argb", given="rgba", options={})
    picture = decode_video(data, width=W, height=H)[0]
    assert picture[:, :46].max() == 0 and picture[:, 74:].min() == 255
    assert abs(int(picture[10, 60, 0]) - 128) <= 1
    small = decode_video(data, width=2, height=2)[0]
    assert small[:, 0].max() <= 2  # the hidden half stays black when it is scaled, too


def test_interlaced_fields_lose_their_combs():
    """A bar moves 6 pixels a field, lower fields first: woven lines would show it in two places."""
    still, woven = [], []
    for index in range(12):
        fields = []
        for field in range(2):
            picture = np.zeros((H, 160, 3), np.uint8)
            left = 4 + (2 * index + field) * 6
            picture[:, left : left + 12] = 255
            fields.append(picture)
        frame = fields[1].copy()
        frame[1::2] = fields[0][1::2]
        woven.append(frame)
        still.append(fields[0])
    options = {"crf": "4", "x264-params": "bff=1"}
    data = write(woven, options=options, stored="yuv422p")
    with av.open(io.BytesIO(data)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    found = decode_video(data, width=160, height=H).astype(int)
    assert len(found) == 12
    combs = [
        np.abs(2 * f[1:-1:2] - f[:-2:2] - f[2::2]).mean() for f in (np.array(woven).astype(int)[5], found[5])
    ]
    assert combs[1] < combs[0] / 4
    for index, frame in enumerate(found[2:-2], 2):  # every frame shows its first field's instant
        assert np.abs(frame - still[index]).mean() < 6


def test_untagged_hd_is_bt709_and_tags_are_obeyed():
    """The same YUV means other colours under other matrices (the expected values are the standards')."""
    ycc = np.stack([np.full((720, 1280), v, np.uint8) for v in (120, 90, 190)])
    bt709, bt601 = (232, 95, 41), (220, 84, 44)
    small = ycc[:, :H, :W].copy()
    for planes, tags, expected in (
        (ycc, {}, bt709),
        (small, {}, bt601),
        (small, {"colorspace": 1}, bt709),
        (ycc, {"colorspace": 6}, bt601),
    ):
        data = write([planes] * 2, codec="ffv1", stored="yuv444p", given="yuv444p", tags=tags, options={})
        near(decode_video(data, width=16, height=16)[0, 8, 8], expected, 3)


def pq_code(nits: float) -> float:
    """ST 2084, the inverse: light to code 0..1."""
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg_code(light: float) -> float:
    """BT.2100's HLG: scene light 0..1 to code."""
    return (
        (3 * light) ** 0.5 if light <= 1 / 12 else 0.17883277 * np.log(12 * light - 0.28466892) + 0.55991073
    )


@pytest.mark.parametrize(("trc", "code"), [(PQ, pq_code), (HLG, lambda n: hlg_code((n / 1000) ** (1 / 1.2)))])
def test_hdr_becomes_sdr(trc, code):
    """Greys of known light, as 10-bit HEVC: dark ones keep their light, bright ones roll off below white."""
    nits = [0, 5, 20, 50, 203, 1000]
    ramp = np.concatenate([np.full((H, 16, 3), code(n) * 65535, np.uint16) for n in nits], axis=1)
    tags = {"colorspace": 9, "color_trc": trc, "color_primaries": 9}
    params = "log-level=none:crf=2:colorprim=bt2020:colormatrix=bt2020nc:transfer="
    params += {PQ: "smpte2084", HLG: "arib-std-b67"}[trc]
    data = write([ramp] * 3, codec="libx265", stored="yuv420p10le", given="rgb48le",
                 options={"x265-params": params}, tags=tags)  # fmt: skip
    picture = decode_video(data, width=W, height=H)[0].astype(int)
    shown = [int(picture[32, 8 + 16 * i, 1]) for i in range(len(nits))]
    assert np.ptp(picture[32, 8::16], axis=1).max() <= 2  # grey stays grey
    assert shown[0] == 0 and shown[-1] >= 253
    for n, value in zip(nits[1:3], shown[1:3], strict=True):
        assert value == pytest.approx(255 * (n / 203) ** (1 / 2.4), abs=4)
    assert shown[2] < shown[3] < shown[4] < shown[5] and 190 < shown[4] < 240


def test_tone_mapping_knows_the_wider_primaries():
    """Pure BT.709 red of 50 cd/m2, written in BT.2020's primaries, comes back as red alone."""
    light = 50 * np.array([0.6274, 0.0691, 0.0164])
    coded = np.array([[[round(pq_code(v) * 65535) for v in light]]], np.uint16)
    red, green, blue = tone_map(coded, PQ)[0, 0]
    assert red == pytest.approx(255 * (50 / 203) ** (1 / 2.4), abs=6) and max(green, blue) < 20


def numbered(count: int) -> list[np.ndarray]:
    """Frames whose brightness is their number times 8."""
    return [np.full((H, W, 3), 8 * index, np.uint8) for index in range(count)]


def numbers(frames) -> list[int]:
    return [round(float(frame.mean()) / 8) for frame in frames]


@pytest.mark.parametrize("container", ["matroska", "mpegts", "mov"])
@pytest.mark.parametrize("first_ms", [0, 700, 5000])
def test_time_runs_from_the_first_frame(container, first_ms):
    """Also after a seek, and in transport streams, which start at 1.4 s and have no index."""
    options = {"crf": "4", "x264-params": "keyint=10:bframes=2"}
    data = write(numbered(32), container=container, first_ms=first_ms, options=options)
    assert numbers(decode_video(data, width=W, height=H)) == list(range(32))
    late = iterate_video(data, width=W, height=H, start_seconds=1.25)
    assert numbers(late) == list(range(20, 32))
    assert numbers(decode_frames(data, [0, 0.1, 0.1, 1.9], width=W, height=H).float()) == [0, 1, 1, 30]


def test_sound_changes_nothing():
    videos = [decode_video(write(numbered(8), sound=sound), width=W, height=H) for sound in (True, False)]
    assert np.array_equal(*videos) and numbers(videos[0]) == list(range(8))


def test_times_beyond_the_end_are_refused():
    with pytest.raises(ValueError, match=r"video bytes: is shorter than asked, it has ended at 0\.5 s"):
        decode_frames(write(numbered(8)), [0, 0.5], width=W, height=H)


def test_absurd_claims_are_refused_by_the_header():
    tiny = write([np.zeros((4, 6, 3), np.uint8)] * 2, codec="ffv1", stored="yuv444p", options={})
    with pytest.raises(ValueError, match=r"video bytes: has pictures of 6x4; sides of 8 pixels or more"):
        decode_video(tiny, width=W, height=H)
    endless = bytearray(write(numbered(4)))
    at = endless.index(b"\x44\x89\x88") + 3  # Matroska's duration in milliseconds, a double
    endless[at : at + 8] = np.array(1e12, ">f8").tobytes()
    with pytest.raises(ValueError, match=r"claims to last .* s; at most 24 hours are read"):
        decode_video(bytes(endless), width=W, height=H)


def test_the_last_frame_stays_no_longer_than_it_may():
    data = bytearray(write(numbered(1), container="mp4"))
    at = data.index(b"stts") + 4
    data[at + 12 : at + 16] = b"\x3f\xff\xff\xff"  # ticks that the sample lasts: 18 hours
    assert len(decode_video(bytes(data), width=W, height=H)) == 160


def test_a_long_gap_is_refused_and_so_is_more_than_memory_should_hold(monkeypatch):
    with av.open(gap := io.BytesIO(), "w", format="matroska") as out:
        stream = out.add_stream("ffv1", 16)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for milliseconds in (0, 700_000):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(ValueError, match="jumps from 0 s to 700 s"):
        decode_video(gap.getvalue(), width=16, height=16)
    monkeypatch.setattr("megatv.data.video.MAX_DECODED_BYTES", 4 * H * W * 3)
    with pytest.raises(ValueError, match="5 frames or more of 96x64"):
        decode_video(write(numbered(8)), width=W, height=H)


def test_playlists_open_no_other_files(tmp_path):
    """An HLS playlist would make FFmpeg read what it names."""
    (tmp_path / "a.ts").write_bytes(write(numbered(8), container="mpegts"))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\na.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.m3u8").write_text(playlist)
    with pytest.raises(ValueError, match=r"a\.m3u8: does not decode \(none of asf, avi"):
        decode_video(tmp_path / "a.m3u8", width=W, height=H)

"""Sizes are those of the picture as a player shows it, and damage is refused wherever decoding begins."""

import io
import random

import av
import numpy as np
import pytest

from megatv.curate.filters import face_frame_size
from megatv.curate.settings import FaceSettings
from megatv.curate.words import picture
from megatv.data.video import decode_video, iterate_video, probe

ONE = 1 << 16


def write(pictures, container="mp4", *, codec="libx264", options=None) -> bytes:
    with av.open(file := io.BytesIO(), "w", format=container) as out:
        stream = out.add_stream(codec, 16, options=options or {"crf": "4"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The mp4 with this display matrix: x' = ax + cy, y' = bx + dy."""
    a, b, c, d = matrix
    at = data.index(b"tkhd") + 44
    return data[:at] + np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes() + data[at + 36 :]


UPRIGHT, UPSIDE_DOWN = (ONE, 0, 0, ONE), (-ONE, 0, 0, -ONE)
QUARTERS = [(0, ONE, -ONE, 0), (0, -ONE, ONE, 0), (0, ONE, ONE, 0), (0, -ONE, -ONE, 0)]
"""Turned by 90 and 270 degrees, and as mirror images."""


@pytest.mark.parametrize("sar", ["1/1", "2/1", "1/2", "16/15"])
@pytest.mark.parametrize("matrix", [UPRIGHT, UPSIDE_DOWN, (-ONE, 0, 0, ONE), *QUARTERS])
def test_a_disc_is_round_for_captioner_and_face_filter(tmp_path, matrix, sar):
    """A disc of 60 pixels in 180 x 120, stored narrower or wider and turned."""
    over, under = map(int, sar.split("/"))
    width = round(180 * under / over / 2) * 2
    y, x = np.mgrid[:120, :width]
    disc = ((x - width / 2) * 180 / width) ** 2 + (y - 60) ** 2 < 30**2
    data = write(
        [np.repeat(disc[..., None] * np.uint8(255), 3, -1)] * 3,
        options={"crf": "4", "x264-params": f"sar={sar}"},
    )
    (tmp_path / "a.mp4").write_bytes(turned(data, matrix))
    info = probe(tmp_path / "a.mp4")
    shown = (120, 180) if matrix in QUARTERS else (180, 120)
    assert (info.width, info.height) == pytest.approx(shown, abs=1)
    seen = picture({"video": "a.mp4", "info": vars(info), "start": 0.0}, 0.0, tmp_path, 160)[..., 0] > 128
    assert seen.any(0).sum() == pytest.approx(seen.any(1).sum(), abs=2)
    faces = face_frame_size(info.width, info.height, FaceSettings())
    assert faces[0] / faces[1] == pytest.approx(shown[0] / shown[1], rel=0.02)


def test_a_picture_that_is_wide_beyond_bounds_is_refused(tmp_path):
    data = write([np.zeros((1200, 1920, 3), np.uint8)], options={"x264-params": "sar=1000/1"})
    with pytest.raises(ValueError, match="has pictures of 1920000x1200"):
        probe(data)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx264", {"x264-params": "keyint=12:bframes=2"}),
        ("mp4", "libx264", {"x264-params": "keyint=12:bframes=3:open-gop=1"}),
        ("mpegts", "libx264", {"x264-params": "keyint=12:bframes=2"}),
        ("matroska", "mpeg4", {"g": "12", "bf": "2", "q:v": "4"}),
    ],
    ids=["h264", "open gop", "ts", "mpeg4"],
)
def test_what_is_refused_from_the_start_is_refused_after_a_seek(container, codec, options):
    """Bytes of coded pictures are overwritten between 2 s and 2.6 s; decoding begins at 0 s and at 1.5 s."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 10, 3))
    still = np.kron(noise, np.ones((16, 16, 1))).astype(np.uint8)
    data = write([np.roll(still, 3 * k, axis=1) for k in range(48)], container, codec=codec, options=options)
    with av.open(io.BytesIO(data)) as file:
        packets = [
            (p.pos, p.size)
            for p in file.demux(video=0)
            if p.size and 2 <= p.dts * p.time_base - file.start_time / 1e6 < 2.6
        ]
    whole = decode_video(data, width=160, height=96, start_seconds=1.5)
    refused = 0
    for seed in range(8):
        dice = random.Random(seed)
        bad, (position, size) = bytearray(data), dice.choice(packets)
        for index in range(position + 40, position + 40 + min(400, max(200, size // 2))):
            bad[index] = dice.randrange(256)
        try:
            decode_video(bytes(bad), width=160, height=96)
            continue
        except ValueError:
            refused += 1
        try:
            found = decode_video(bytes(bad), width=160, height=96, start_seconds=1.5)
        except ValueError:
            continue
        assert np.abs(found.astype(int) - whole).mean((1, 2, 3)).max() < 3, seed
    assert refused >= 3


def test_what_is_built_on_a_lost_frame_of_a_transport_stream_is_not_shown():
    """FFmpeg's H.264 decoder goes on from another frame and does not pass on that the container noticed."""
    pictures = [np.full((96, 160, 3), 5 * k, np.uint8) for k in range(32)]
    data = write(pictures, "mpegts", options={"x264-params": "keyint=32:bframes=0", "crf": "20"})
    with av.open(io.BytesIO(data)) as file:
        begin, end = [p.pos for p in file.demux(video=0) if p.size][20:22]
    with pytest.raises(ValueError, match="does not decode \\(damaged at"):
        list(iterate_video(data[:begin] + data[end:], width=32, height=32, fps=1))


def test_a_transport_stream_that_begins_anywhere_begins_with_its_first_key_frame():
    pictures = [np.full((96, 160, 3), 5 * k, np.uint8) for k in range(48)]
    data = write(
        pictures, "mpegts", codec="libx265", options={"x265-params": "log-level=none:keyint=12:min-keyint=12"}
    )
    with av.open(io.BytesIO(data)) as file:
        position = [p.pos for p in file.demux(video=0) if p.size][5]
    cut = data[position // 188 * 188 :]
    found = [round(float(frame.mean()) / 5) for frame in iterate_video(cut, width=32, height=32)]
    assert found == list(range(found[0], 48)) and 0 < found[0] <= 12
    assert probe(cut).seconds == pytest.approx(len(found) / 16, abs=0.02)

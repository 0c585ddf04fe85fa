"""What real files do at the edges: times that containers make up, cover art, mirrors, cuts, bombs, leaks."""

import ctypes
import gc
import io
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from megatv.data.video import decode_frames, decode_video, encode_video, iterate_video
from megatv.data.video_source import read_timeline

H, W = 64, 96
B_FRAMES = {"crf": "4", "x264-params": "keyint=12:bframes=2"}


def numbered(count: int) -> list[np.ndarray]:
    """Frames whose brightness is their number times 8."""
    return [np.full((H, W, 3), 8 * index, np.uint8) for index in range(count)]


def numbers(frames) -> list[int]:
    return [round(float(frame.mean()) / 8) for frame in frames]


def shown(data: bytes, start: float = 0.0) -> list[int]:
    return numbers(iterate_video(data, width=W, height=H, start_seconds=start))


def video_stream(out, codec="libx264", options=B_FRAMES, size=(H, W), stored="yuv420p"):
    stream = out.add_stream(codec, 16, options=options)
    stream.height, stream.width = size
    stream.pix_fmt = stored
    return stream


def coded(out, stream, pictures) -> None:
    for picture in pictures:
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    out.mux(stream.encode())


def write(pictures, container="mp4", muxer=None, **kind) -> bytes:
    with av.open(file := io.BytesIO(), "w", format=container, options=muxer or {}) as out:
        stream = video_stream(out, size=pictures[0].shape[:2], **kind)
        coded(out, stream, pictures)
    return file.getvalue()


@pytest.mark.parametrize("container", ["avi", "asf", "flv", "nut", "matroska", "mpegts", "mp4"])
def test_b_frames_are_shown_in_order_in_every_container(container):
    """AVI and ASF store them in the order of decoding, without times on screen."""
    data = write(numbered(32), container)
    assert shown(data) == list(range(32))
    assert shown(data, 1.25) == list(range(20, 32))
    assert numbers(decode_frames(data, [0.5, 1.9], width=W, height=H).float()) == [8, 30]


def test_time_goes_on_where_the_clock_of_a_transport_stream_turns_over():
    """33 bits of 90 kHz, after 26.5 hours."""
    data = write(numbered(32), "mpegts", {"output_ts_offset": "95442.9"})
    with av.open(io.BytesIO(data)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert min(times) < 0 < max(times) or max(times) - min(times) > 1 << 32
    assert shown(data) == list(range(32)) and shown(data, 1.5) == list(range(24, 32))


def test_an_edit_list_cuts_within_a_group_of_pictures():
    data = bytearray(write(numbered(32), "mov", options={**B_FRAMES, "x264-params": "keyint=32:bframes=2"}))
    with av.open(io.BytesIO(data)) as container:
        time_base = container.streams.video[0].time_base
    at = data.index(b"elst") + 12  # one edit: its duration, the time of its media, its rate
    duration, begin = struct.unpack(">Ii", data[at : at + 8])
    cut = begin + int(Fraction(10, 16) / time_base)
    data[at : at + 8] = struct.pack(">Ii", duration * 22 // 32, cut)
    assert shown(bytes(data)) == list(range(10, 32)) and shown(bytes(data), 1.125) == list(range(28, 32))
    assert read_timeline(bytes(data)).care  # DALI would count the frames that are cut away


def test_of_frames_of_one_time_the_last_is_shown_by_both_decoders():
    with av.open(file := io.BytesIO(), "w", format="matroska") as out:
        stream = video_stream(out, "ffv1", {})
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, milliseconds in zip(numbered(6), (0, 62, 62, 125, 188, 250), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert shown(file.getvalue()) == [0, 2, 3, 4, 5]
    seconds = read_timeline(file.getvalue()).seconds
    assert np.searchsorted(seconds, 0.0635, side="right") - 1 == 2


def test_cover_art_is_not_the_video():
    """Also where it comes first, as in files whose tags stand before their tracks."""
    with av.open(file := io.BytesIO(), "w", format="mp4") as out:
        stream, cover = video_stream(out), video_stream(out, "mjpeg", {}, stored="yuvj420p")
        cover.disposition = Disposition.attached_pic
        coded(out, cover, [np.full((H, W, 3), 200, np.uint8)])
        coded(out, stream, numbered(20))
    data = file.getvalue()
    tags_first = bytearray(data)
    movie, track, tags = (data.index(name) - 4 for name in (b"moov", b"trak", b"udta"))
    end = movie + int.from_bytes(data[movie : movie + 4])
    tags_first[track:end] = data[tags:end] + data[track:tags]
    with av.open(io.BytesIO(tags_first)) as container:
        assert [s.codec_context.name for s in container.streams.video] == ["mjpeg", "h264"]
    for file in (data, bytes(tags_first)):
        assert shown(file) == list(range(20)) and "several" in read_timeline(file).care


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_videos_the_default_is_shown(default):
    with av.open(file := io.BytesIO(), "w", format="mp4") as out:
        streams = [video_stream(out), video_stream(out)]
        for index, stream in enumerate(streams):
            stream.disposition = Disposition.default if index == default else Disposition(0)
        for index, stream in enumerate(streams):
            coded(out, stream, numbered(30)[15 * index : 15 * index + 15])
    assert shown(file.getvalue()) == list(range(15 * default, 15 * default + 15))


ONE = 1 << 16
WHITE, RED, BLUE, BLACK = (255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((-ONE, 0, 0, ONE), [RED, WHITE, BLACK, BLUE]),  # sideways, as some front cameras do
        ((ONE, 0, 0, -ONE), [BLUE, BLACK, WHITE, RED]),
        ((0, ONE, ONE, 0), [WHITE, BLUE, RED, BLACK]),
        ((0, -ONE, -ONE, 0), [BLACK, RED, BLUE, WHITE]),
        ((0, ONE, -ONE, 0), [BLUE, WHITE, BLACK, RED]),  # turned only, clockwise
    ],
)
def test_mirror_images_are_flipped_back(matrix, expected):
    """Four quarters: white and red above, blue and black below; x' = ax + cy, y' = bx + dy."""
    picture = np.zeros((61, 97, 3), np.uint8)  # an odd size, turned
    picture[:30, :48], picture[:30, 48:], picture[30:, :48] = WHITE, RED, BLUE
    data = bytearray(write([picture] * 3, stored="yuv444p"))
    a, b, c, d = matrix
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    found = decode_video(bytes(data), width=40, height=40)[0].astype(int)
    for (y, x), colour in zip(((10, 10), (10, 30), (30, 10), (30, 30)), expected, strict=True):
        assert np.abs(found[y, x] - colour).max() < 8, (y, x)
    mirror = a * d < b * c
    assert read_timeline(bytes(data)).care == ("yuv444p frames" if not mirror else "a mirror image")


def test_pixels_need_not_be_square():
    """The size asked for is filled, whatever shape the stored pixels have."""
    pictures = [np.tile(np.linspace(0, 255, W, dtype=np.uint8)[None, :, None], (H, 1, 3))] * 3
    square, wide = (
        write(pictures, options={"crf": "4", "x264-params": f"sar={sar}"}) for sar in ("1/1", "2/1")
    )
    with av.open(io.BytesIO(wide)) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    found = [decode_video(data, width=W, height=H) for data in (square, wide)]
    assert np.array_equal(*found)


@pytest.mark.parametrize("fields", ["", "tff=1"])
@pytest.mark.parametrize(
    ("matrix", "range", "expected"),
    [
        (Colorspace.SMPTE170M, ColorRange.MPEG, (37, 144, 21)),
        (Colorspace.SMPTE170M, ColorRange.JPEG, (47, 140, 33)),
        (Colorspace.ITU709, ColorRange.MPEG, (30, 126, 18)),
        (Colorspace.ITU709, ColorRange.JPEG, (40, 125, 29)),
    ],
)
def test_range_and_matrix_are_obeyed(matrix, range, expected, fields):
    """The colours that ITU-R BT.601 and BT.709 give to Y 100, Cb 90, Cr 90; deinterlacing changes nothing."""
    yuv = np.stack([np.full((H, W), value, np.uint8) for value in (100, 90, 90)])
    with av.open(file := io.BytesIO(), "w", format="matroska") as out:
        stream = video_stream(out, options={"crf": "1", "x264-params": fields}, stored="yuv444p")
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, range
        for plane in [yuv] * 4:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv444p")))
        out.mux(stream.encode())
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert next(container.decode(video=0)).interlaced_frame == bool(fields)
    found = decode_video(file.getvalue(), width=W, height=H)[2, 30, 40].astype(int)
    assert np.abs(found - expected).max() <= 4


def test_transparency_that_is_not_read_is_refused():
    rgba = np.full((H, W, 4), 255, np.uint8)
    with av.open(file := io.BytesIO(), "w", format="webm") as out:
        stream = video_stream(out, "libvpx-vp9", {"auto-alt-ref": "0"}, stored="yuva420p")
        out.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        out.mux(stream.encode())
    with pytest.raises(ValueError, match=r"has a transparency of its own .* premultiply=inplace=1"):
        decode_video(file.getvalue(), width=W, height=H)


def bombs() -> dict[str, bytes]:
    """A true 8K picture whose container claims 64x48, and a file of 2 KB that claims 84 million samples."""
    with av.open(file := io.BytesIO(), "w", format="mp4") as out:
        stream = video_stream(out, options={"preset": "ultrafast"}, size=(4320, 7680))
        out.mux(stream.encode(av.VideoFrame(7680, 4320, "yuv420p")))
        out.mux(stream.encode())
    huge, endless = bytearray(file.getvalue()), bytearray(write(numbered(8)))
    at = huge.index(b"avc1\0\0") + 28
    huge[at : at + 4] = struct.pack(">HH", 64, 48)
    for table, place, values in (
        (b"stsz", 8, (1, 84_000_000)),
        (b"stts", 12, (84_000_000,)),
        (b"stsc", 16, (84_000_000,)),
    ):
        at = endless.index(table) + place
        endless[at : at + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    return {"huge": bytes(huge), "endless": bytes(endless)}


BOMB = """
import sys
from pathlib import Path
import torch
from megatv.data.video import decode_frames, decode_video
small, bomb = (Path(name).read_bytes() for name in sys.argv[1:])
decode_video(small, width=32, height=32)
before = peak()
size = {"width": 32, "height": 32}
for decode in (lambda: decode_frames(bomb, [0], **size), lambda: decode_video(bomb, **size)):
    try:
        decode()
        print("decoded")
    except ValueError as error:
        print(error)
print((peak() - before) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read in /proc")
@pytest.mark.parametrize(
    ("kind", "reason"), [("huge", "has pictures of 7680x4320"), ("endless", "holds no frames")]
)
def test_bombs_are_refused_in_little_memory(peak_source, tmp_path, kind, reason):
    """Without the limits the second one takes 5 GB and half a minute."""
    (tmp_path / "small").write_bytes(write(numbered(8)))
    (tmp_path / "bomb").write_bytes(bombs()[kind])
    result = subprocess.run(
        [sys.executable, "-c", peak_source + BOMB, tmp_path / "small", tmp_path / "bomb"],
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 3 and all(reason in line for line in lines[:2]), result.stderr
    assert int(lines[2]) < 200  # MiB


class Heap(ctypes.Structure):
    """glibc's mallinfo2: `uordblks` and `hblkhd` are the bytes in use, free ones not counted."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    )  # fmt: skip


def test_a_decode_that_ends_early_leaves_no_memory():
    """Bytes in use, which unlike the process's size do not depend on what malloc keeps."""
    try:
        mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        pytest.skip("needs glibc 2.33")
    mallinfo2.restype = Heap
    data = encode_video(np.stack(numbered(32)), crf=20)

    def in_use_after(count: int) -> int:
        for _ in range(count):
            decode_frames(data, [0.0, 0.1], width=16, height=16)
            decode_frames(data, [1.25], width=16, height=16)
        gc.collect()
        heap = mallinfo2()
        return heap.uordblks + heap.hblkhd

    before = in_use_after(20)
    assert in_use_after(200) - before < 200 * 100

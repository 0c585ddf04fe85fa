"""Hostile videos for `fuzz_video.py`, made from real clips by seeded damage of seven kinds.

truncated, bit-flipped, zero-length, the wrong container, tiny (1x1), huge (8K and more), endless durations.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

from megatv.data.video import iterate_video

import av
import numpy as np
from av.video.stream import VideoStream

SIZES = {"tiny": [(1, 1), (1, 4096), (7, 7), (0, 0)], "huge": [(7680, 4320), (16384, 16384), (65500, 65500)]}
TIME_BOXES = (b"mvhd", b"mdhd", b"tkhd", b"elst", b"stts", b"ctts", b"stsz", b"mehd", b"\x44\x89")
MAGICS = (
    b"RIFF\xff\xff\xff\xffAVI LIST", b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", b"OggS\0\x02", b"\x89PNG\r\n\x1a\n",
    b"#EXTM3U\n#EXTINF:9,\nfile:other.mp4\n", b"FLV\x01\x05\0\0\0\x09", b"\0\0\x01\xba\x44\0\x04\0",
    b"ffconcat version 1.0\nfile other.mp4\n", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"G@\0\x10\0\0\xb0\x0d",
)  # fmt: skip


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(len(data) * rng.random() ** 2)]


def bit_flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """1 to 1000 bits: anywhere, in the first 2 KiB or in the last 8 KiB, where headers and indexes are."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    first, last = ((0, len(bits)), (0, 8 * 2048), (len(bits) - 8 * 8192, len(bits)))[rng.integers(3)]
    at = rng.integers(max(first, 0), min(last, len(bits)), int(10 ** (3 * rng.random())))
    bits[at] ^= 1
    return np.packbits(bits).tobytes()


def zero_length(data: bytes, rng: np.random.Generator) -> bytes:
    """Nothing, nothing but zeros, or a file with a run of zeros."""
    if rng.random() < 0.5:
        return b"\0" * int(rng.integers(0, 64) * rng.integers(0, 64))
    at, size = (int(v) for v in rng.integers(0, len(data), 2))
    return data[:at] + b"\0" * size + data[at + size :]


def wrong_container(data: bytes, rng: np.random.Generator) -> bytes:
    """Another format's first bytes, in front of the file or over its own; or noise."""
    magic = MAGICS[rng.integers(len(MAGICS))]
    if rng.random() < 0.2:
        return magic + rng.bytes(int(rng.integers(1, 4096)))
    return magic + data[len(magic) * int(rng.integers(2)) :]


def resized(data: bytes, rng: np.random.Generator, sizes: str) -> bytes:
    """Claims of another size where MP4, Matroska, JPEG and VP8 keep theirs."""
    width, height = SIZES[sizes][rng.integers(len(SIZES[sizes]))]
    out = bytearray(data)
    for tag, gap, form, pair in (
        (b"avc1", 24, ">HH", (width, height)), (b"jpeg", 24, ">HH", (width, height)),
        (b"vp09", 24, ">HH", (width, height)), (b"tkhd", 76, ">II", (width << 16, height << 16)),
        (b"\xff\xc0", 3, ">HH", (height, width)),
        (b"\x9d\x01\x2a", 0, "<HH", (width & 16383, height & 16383)),
    ):  # fmt: skip
        for at in _places(out, tag):
            if at + gap + struct.calcsize(form) <= len(out) and rng.random() < 0.9:
                struct.pack_into(form, out, at + gap, *(value & 0xFFFFFFFF for value in pair))
    for at in _places(out, b"\xb0"):  # Matroska's PixelWidth, two bytes, followed by PixelHeight
        if out[at : at + 1] == b"\x82" and out[at + 3 : at + 5] == b"\xba\x82":
            struct.pack_into(">H", out, at + 1, min(width, 65535))
            struct.pack_into(">H", out, at + 5, min(height, 65535))
    return bytes(out)


def endless(data: bytes, rng: np.random.Generator) -> bytes:
    """Huge numbers in the boxes that hold durations, times and counts of samples."""
    out = bytearray(data)
    tags = [tag for tag in TIME_BOXES if tag in data and rng.random() < 0.4]
    for tag in tags or TIME_BOXES:
        for at in _places(out, tag)[:2]:
            value = (0x7FFFFFFF, 0xFFFFFFFE, 0x3FFFFFFF, 0x00FFFFFF)[rng.integers(4)]
            place = at + int(rng.integers(1, 8)) * 4
            if tag == b"\x44\x89":
                out[at + 1 : at + 9] = struct.pack(">d", 10 ** rng.uniform(6, 300))
            elif place + 4 <= len(out):
                struct.pack_into(">I", out, place, value)
    return bytes(out)


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncated": truncated,
    "bit_flipped": bit_flipped,
    "zero_length": zero_length,
    "wrong_container": wrong_container,
    "tiny": lambda data, rng: resized(data, rng, "tiny"),
    "huge": lambda data, rng: resized(data, rng, "huge"),
    "endless": endless,
}


def make_input(clips: list[bytes], seed: int, number: int) -> tuple[str, bytes]:
    """(kind of damage, bytes) of one input; kinds take turns, one in ten is damaged twice."""
    rng = np.random.default_rng([seed, number])
    kinds = list(DAMAGE)
    kind = kinds[number % len(kinds)]
    data = DAMAGE[kind](clips[rng.integers(len(clips))], rng)
    if rng.random() < 0.1 and len(data) > 1:
        data = bit_flipped(data, rng)
    return kind, data


def variants(clip: Path) -> list[bytes]:
    """The clip itself, and its first two seconds in other codecs and containers."""
    made = [clip.read_bytes()]
    pictures = [frame for frame, _ in zip(iterate_video(clip, width=160, height=96), range(32), strict=False)]
    for codec, container, stored in (
        ("libx264", "mp4", "yuv420p"), ("libx264", "mpegts", "yuv420p"), ("mjpeg", "mov", "yuvj420p"),
        ("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "mp4", "yuv420p"), ("mpeg4", "avi", "yuv420p"),
    ):  # fmt: skip
        with av.open(file := io.BytesIO(), "w", format=container) as out:
            stream = cast(VideoStream, out.add_stream(codec, 16))
            stream.width, stream.height, stream.pix_fmt = 160, 96, stored
            for picture in pictures:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
        made.append(file.getvalue())
    return made


def _places(data: bytes | bytearray, tag: bytes) -> list[int]:
    """Where the first 64 occurrences of `tag` end."""
    found: list[int] = []
    at = data.find(tag)
    while at >= 0 and len(found) < 64:
        found.append(at + len(tag))
        at = data.find(tag, at + 1)
    return found

"""Pictures of every kind, whole and damaged: the right pixels, or one sentence."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image, features

from megatv.data import picture as reader
from megatv.data.picture import FORMATS, decode_picture

KINDS = ["PNG", "JPEG", "WEBP", *(["AVIF"] if features.check("avif") else [])]
RAMP = np.linspace(0, 255, 64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth, color, *chunks, rows=b""):
    """A PNG made by hand: chunks are (name, content) pairs that come before the pixels."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, color, 0, 0, 0))
    body = b"".join(chunk(name, content) for name, content in chunks)
    pixels = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + head + body + pixels + chunk(b"IEND", b"")


def refused(data, *words):
    with pytest.raises(ValueError) as error:
        decode_picture(data, 32, 32)
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 300
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("kind", KINDS)
def test_formats_that_people_use(kind):
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100}}
    data = encoded(Image.fromarray(RAMP), kind, **lossless.get(kind, {}))
    pixels, size = decode_picture(data, 64, 64)
    assert size == (64, 64) and pixels.dtype == np.uint8
    assert abs(pixels.astype(int) - RAMP).max() <= (0 if kind in ("PNG", "WEBP") else 12)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "TIFF", "PPM", "ICO", "PDF", "TGA", "PCX", "JPEG2000"])
def test_other_formats_are_refused(kind):
    refused(encoded(Image.fromarray(RAMP), kind), "cannot be read as a picture", FORMATS)


def test_no_other_program_is_started(tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    for name in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["gs"], check=True)
    assert marker.exists()  # the trap works
    marker.unlink()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    dos = struct.pack("<I7I", 0xC6D3D0C5, 32, len(eps), 0, 0, 0, 0, 0xFFFF) + eps
    for data in (eps, dos, encoded(Image.fromarray(RAMP), "EPS")):
        refused(data, FORMATS)
    assert not marker.exists()


GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA", "LA"])
def test_modes_look_as_they_do_in_8_bit_rgb(mode):
    image = Image.fromarray(GREY).convert(mode)
    pixels = decode_picture(encoded(image, "PNG"), 64, 64).pixels
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_grey_in_16_bits_looks_as_in_8():
    for wide in (GREY.astype(np.uint16) * 257, GREY.astype(np.uint16) << 8):
        pixels = decode_picture(encoded(Image.fromarray(wide), "PNG"), 64, 64).pixels
        assert np.array_equal(pixels, np.repeat(GREY[..., None], 3, 2))


def test_color_in_16_bits_looks_as_in_8():
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RAMP.astype(np.uint16) * 257)
    assert np.array_equal(decode_picture(png(64, 64, 16, 2, rows=rows), 64, 64).pixels, RAMP)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", *KINDS[3:]])
def test_what_is_transparent_lies_over_black(kind):
    image = np.full((64, 64, 4), 255, np.uint8)
    image[:, :32, 3] = 0  # white that nobody sees
    image[32:, 32:, 3] = 128
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(kind, {})
    pixels = decode_picture(encoded(Image.fromarray(image), kind, **options), 64, 64).pixels
    assert pixels[:, :32].max() <= 2
    assert pixels[:32, 32:].min() >= 250 and abs(pixels[32:, 32:].astype(int) - 128).max() <= 4
    small = decode_picture(encoded(Image.fromarray(image), kind, **options), 16, 16).pixels
    assert small[:, :7].max() <= 12  # what is hidden does not show at the edge either


def test_a_transparent_palette_entry_lies_over_black():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    image.putpalette([value for entry in range(256) for value in (255 - entry, 200, 100)])
    pixels = decode_picture(encoded(image, "PNG", transparency=5), 8, 8).pixels
    assert pixels[0, 5].tolist() == [0, 0, 0] and pixels[0, 4].tolist() == [251, 200, 100]
    pixels = decode_picture(encoded(image, "PNG", transparency=bytes([0, 128, 255])), 8, 8).pixels
    assert pixels[0, :3].tolist() == [[0, 0, 0], [127, 100, 50], [253, 200, 100]]


@pytest.mark.parametrize(
    ("depth", "color", "hidden", "row", "shown"),
    [
        (1, 0, [1], b"\x0f", [0, 0, 0, 0, 0, 0, 0, 0]),
        (2, 0, [1], b"\x1b\x1b", [0, 0, 170, 255] * 2),
        (4, 0, [15], b"\x0f\x1f\x2f\x3f", [0, 0, 17, 0, 34, 0, 51, 0]),
        (8, 0, [7], bytes(range(8)), [0, 1, 2, 3, 4, 5, 6, 0]),
        (16, 0, [0x0507], bytes(range(16)), [0, 2, 4, 6, 8, 10, 12, 14]),
        (16, 0, [0x0405], bytes(range(16)), [0, 2, 0, 6, 8, 10, 12, 14]),
        (16, 2, [0x0607, 0x0607, 0x0607], b"".join(bytes([i, i + 1]) * 3 for i in range(0, 16, 2)), None),
    ],
)
def test_a_transparent_color_of_any_depth_lies_over_black(depth, color, hidden, row, shown):
    content = struct.pack(f">{len(hidden)}H", *hidden)
    pixels = decode_picture(png(8, 1, depth, color, (b"tRNS", content), rows=b"\0" + row), 8, 1).pixels
    assert pixels[0, :, 0].tolist() == (shown or [0, 2, 4, 0, 8, 10, 12, 14])


def test_four_inks_of_a_jpeg():
    image = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    assert abs(decode_picture(encoded(image, "JPEG"), 8, 8).pixels[4, 4].astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(kind, orientation):
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, size = decode_picture(encoded(Image.fromarray(corner), kind, exif=exif), 8, 8)
    assert size == ((64, 48) if orientation < 5 else (48, 64))
    row, column = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    quarters = pixels.reshape(2, 4, 2, 4, 3).mean((1, 3, 4))
    assert quarters[row, column] > 200 and quarters.sum() < 280


@pytest.mark.parametrize("exif", [b"", b"II*\0\xff\xff\xff\xff", b"MM\0*" + b"\0" * 9])
def test_damaged_exif_does_not_spoil_a_picture(exif):
    data = encoded(Image.fromarray(RAMP), "JPEG", exif=b"Exif\0\0" + exif)
    assert decode_picture(data, 32, 32).size == (64, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_get_one_sentence_or_pixels(kind):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, RAMP.shape, np.uint8)), kind)
    for length in (0, 3, 12, 20, 33, len(whole) // 2):
        refused(whole[:length], "cannot be read as a picture")
    rng = np.random.default_rng(1)
    for _ in range(12):
        data = bytearray(whole)
        for at in rng.integers(8, len(data), 8):
            data[at] = rng.integers(256)
        try:
            assert decode_picture(bytes(data), 32, 32).pixels.shape == (32, 32, 3)
        except ValueError as error:
            assert "\n" not in str(error) and "cannot be read as a picture" in str(error)


def test_the_header_is_enough_to_refuse_a_giant(monkeypatch):
    giants = [png(4001, 4000, 8, 2), png(2**31 - 1, 1, 1, 0), png(60_000, 60_000, 1, 0)]
    webp = bytearray(encoded(Image.fromarray(RAMP), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    jpeg = bytearray(encoded(Image.fromarray(RAMP), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">2H", 65_500, 65_500)
    for data in (*giants, bytes(webp), bytes(jpeg)):
        refused(data, "16 million pixels")
    assert decode_picture(encoded(Image.new("L", (4000, 4000)), "PNG"), 8, 8).size == (4000, 4000)


def test_bombs_beside_the_pixels_are_bounded(peak_source, tmp_path):
    """In a process that decodes nothing else: what it takes, and the decoders that it starts."""
    bomb = zlib.compress(bytes(300 << 20), 9)
    rows = b"".join(b"\0" + bytes(8) for _ in range(8))
    for name, content in [
        (b"zTXt", b"a\0\0" + bomb),
        (b"iTXt", b"a\0\1\0\0\0" + bomb),
        (b"iCCP", b"a\0\0" + bomb),
        (b"eXIf", b"MM\0*" + bytes(4 << 20)),
        (b"acTL", struct.pack(">2I", 2**31 - 1, 0)),
    ]:
        (tmp_path / name.decode()).write_bytes(png(8, 8, 8, 0, (name, content), rows=rows))
    script = f"""
        import resource
        from pathlib import Path
        from megatv.data.picture import decode_picture
        before = peak()
        for file in Path({str(tmp_path)!r}).iterdir():
            try:
                decode_picture(file, 8, 8)
            except ValueError as error:
                assert "cannot be read as a picture" in str(error)
        print(peak() - before)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    """
    program = peak_source + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    own, decoders = map(int, done.stdout.split())
    assert own < 32 << 10 and decoders < reader.MAX_DECODER_BYTES >> 10


def test_a_decoder_that_takes_too_much_is_ended(monkeypatch, tmp_path):
    data = encoded(Image.new("RGBA", (3000, 3000)), "PNG")
    monkeypatch.setattr(reader, "MAX_DECODER_BYTES", 128 << 20)
    refused(data, "too much memory")
    monkeypatch.undo()

    # the last scan of a progressive JPEG, a few bytes that walk over all blocks, again and again
    whole = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    scans = whole[:-2] + whole[last:-2] * 20_000 + whole[-2:]
    assert len(scans) < 10 << 20
    monkeypatch.setattr(reader, "MAX_DECODER_SECONDS", 1)
    began = time.monotonic()
    refused(scans, "too long")
    assert time.monotonic() - began < 30

    monkeypatch.setattr(reader, "CHILD", tmp_path / "child.py")
    for program, words in [
        ("import time; time.sleep(60)", "too long"),
        ("import os; os.abort()", "the decoder crashed"),
    ]:
        reader.CHILD.write_text(program)
        refused(data, words)


def test_one_picture_at_a_time(monkeypatch, tmp_path):
    """Every child marks that it runs, and would see the mark of another."""
    mark = tmp_path / "running"
    child = tmp_path / "child.py"
    child.write_text(
        f"import os, sys, time\nos.mkdir({str(mark)!r}); time.sleep(0.2); os.rmdir({str(mark)!r})\n"
        "sys.stdout.buffer.write(bytes(8 + 32 * 32 * 3))"
    )
    monkeypatch.setattr(reader, "CHILD", child)
    shown = []
    threads = [threading.Thread(target=lambda: shown.append(decode_picture(b"x", 32, 32))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shown) == 4  # a child that met another would have failed


def test_a_large_picture_leaves_no_memory_behind(peak_source):
    """Eight at once, in a process of its own."""
    program = (
        peak_source
        + """
import io, threading
from PIL import Image
from megatv.data.picture import decode_picture
file = io.BytesIO()
Image.new("RGB", (4000, 4000), (1, 2, 3)).save(file, "PNG")
before = peak()
threads = [threading.Thread(target=decode_picture, args=(file.getvalue(), 64, 64)) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(peak() - before)
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 16 << 10, done.stderr  # KiB; one picture unpacked has 46 MiB


def test_files(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(RAMP), "PNG"))
    assert decode_picture(tmp_path / "a.png", 64, 64).size == (64, 64)
    (tmp_path / "huge").write_bytes(b"")
    os.truncate(tmp_path / "huge", reader.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="64 MiB"):
        decode_picture(tmp_path / "huge", 8, 8)
    with pytest.raises(OSError):
        decode_picture(tmp_path, 8, 8)

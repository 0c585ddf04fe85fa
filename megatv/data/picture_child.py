"""Decodes one picture in a process of its own; `megatv.data.picture` starts it and has the limits.

    python picture_child.py WIDTH HEIGHT MAX_PIXELS MAX_BYTES MAX_SECONDS < FILE

Writes width and height of the upright picture as two uint32, then its pixels scaled to WIDTH x HEIGHT as RGB.
What cannot be read ends with exit code 1 and the reason on stdout. Imports Pillow alone, to start quickly.
"""

from __future__ import annotations

import io
import resource
import struct
import sys
import warnings

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, features  # noqa: F401, they register

FORMATS = ["PNG", "JPEG", "WEBP"]
if features.check("avif"):
    from PIL import AvifImagePlugin

    FORMATS.append("AVIF")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # every thread would take its share of the memory

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture with each EXIF orientation is turned upright."""
PNG_DEPTH = 24
"""Offset in a PNG file of its bits per sample."""


def main() -> int:
    """Read, decode, write; the exit code."""
    width, height, max_pixels, max_bytes, max_seconds = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (max_seconds, max_seconds + 1))
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("ignore")
    try:
        size, pixels = decode(sys.stdin.buffer.read(), width, height, max_pixels)
    except Image.UnidentifiedImageError:
        print("it has none of these formats, or its header is damaged")
    except (Image.DecompressionBombError, TooLargeError):
        print(f"it has more than {max_pixels // 1_000_000} million pixels")
    except MemoryError:
        print("reading it takes too much memory")
    except Exception as error:  # a damaged file can make a decoder raise anything
        print(f"it is damaged: {str(error).splitlines()[0][:80]}" if str(error) else "it is damaged")
    else:
        sys.stdout.buffer.write(struct.pack("<2I", *size) + pixels)
        return 0
    return 1


class TooLargeError(Exception):
    """More pixels than are allowed."""


def decode(data: bytes, width: int, height: int, max_pixels: int) -> tuple[tuple[int, int], bytes]:
    """Size of the upright picture, and its pixels scaled to width x height, RGB."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise TooLargeError
        size = image.size
        # a JPEG can be decoded at a half, a quarter or an eighth of its size: twice what is needed is enough
        image.draft(None, (2 * max(width, height),) * 2)
        turn = _turn(image)
        picture = _over_black(image, data)
    if turn is not None:
        picture = picture.transpose(turn)
        size = size if turn in (TURNS[2], TURNS[3], TURNS[4]) else size[::-1]
    return size, picture.resize((width, height), Image.Resampling.BICUBIC).tobytes()


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that its EXIF asks for; damaged EXIF asks for none."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged one can make its parser raise anything
        return None


def _over_black(image: Image.Image, data: bytes) -> Image.Image:
    """The picture in 8-bit RGB, what is transparent laid over black."""
    image.load()
    hidden = image.info.get("transparency")
    if image.format == "PNG" and hidden is not None:
        image.info["transparency"] = hidden = _in_8_bits(hidden, image.mode, data[PNG_DEPTH])
    if image.mode.startswith("I"):  # grey in 16 bits, of which the higher eight are shown
        wide = image.convert("I")
        image = wide.point([value >> 8 for value in range(1 << 16)], "L")
        if hidden is not None:
            image.putalpha(wide.point([255 * (value != hidden) for value in range(1 << 16)], "L"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _in_8_bits(hidden: int | bytes | tuple[int, ...], mode: str, depth: int) -> int | bytes | tuple[int, ...]:
    """The transparent colour of a PNG in the 8 bits in which Pillow keeps its pixels, not in the file's."""
    if mode == "L" and depth < 8 and isinstance(hidden, int):
        return hidden * 255 // ((1 << depth) - 1)
    if mode == "RGB" and depth == 16 and isinstance(hidden, tuple):
        return tuple(value >> 8 for value in hidden)
    return hidden


if __name__ == "__main__":
    sys.exit(main())

"""How frames travel."""

import io

import numpy as np
from PIL import Image

from megatv.studio.protocol import HEADER, pack_frames


def test_small_pictures_travel_as_they_are():
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    data = pack_frames(2, 7, 25, frames)
    assert HEADER.unpack_from(data) == (2, 7, 25, 4, 48, 32, 0)
    assert data[HEADER.size :] == frames.tobytes()


def test_large_pictures_travel_as_jpeg():
    ramp = np.linspace(0, 255, 320 * 192 * 3).reshape(192, 320, 3).astype(np.uint8)
    frames = np.stack([ramp, ramp[::-1]])
    data = pack_frames(0, 1, 1, frames)
    assert HEADER.unpack_from(data) == (0, 1, 1, 2, 320, 192, 1)
    assert HEADER.size % 4 == 0  # the page reads the lengths as aligned words
    at = HEADER.size + 8
    for length, frame in zip(np.frombuffer(data, "<u4", 2, HEADER.size), frames, strict=True):
        picture = np.array(Image.open(io.BytesIO(data[at : at + length])))
        assert abs(picture.astype(int) - frame).mean() < 4
        at += length
    assert at == len(data) < frames.nbytes / 4

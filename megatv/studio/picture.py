"""The first picture that a person uploads."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from megatv.sample.inputs import scale, upright
from megatv.studio import limits


def read_picture(data: bytes, width: int, height: int) -> tuple[np.ndarray, str]:
    """uint8 [height, width, 3], scaled without letterboxing as training videos are, and what was done to it.

    Raises ValueError with one sentence when it is no picture, or one that is too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > limits.MAX_PICTURE_PIXELS:
                raise ValueError(
                    f"the picture is {image.width}x{image.height}: give one of at most "
                    f"{limits.MAX_PICTURE_PIXELS // 1_000_000} million pixels"
                )
            picture = upright(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"this file cannot be read as a picture ({error}): give a PNG or JPEG") from None
    note = f"{picture.width}x{picture.height}"
    if picture.size != (width, height):
        note += f", resized to the model's {width}x{height}"
    return scale(picture, width, height), note

"""What a page may say to the studio, and how frames travel to the page.

A page sends one JSON object a message, with a `type`; anything else is a ValueError with one sentence. The
studio sends lists of JSON objects as text, and each chunk's frames as one binary message.
"""

from __future__ import annotations

import io
import struct
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from megatv.studio import limits

Text = Annotated[str, Field(max_length=limits.MAX_TEXT)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Bit = Annotated[int, Field(ge=0, le=1)]


class Command(BaseModel):
    """One wish of a page. Numbers must be numbers, and nothing may stand there that is not asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Make(Command):
    """Start a new video.

    picture       from the picture that was uploaded     example   from a held-out example
    image_words   words before either, in place of the model's own
    game          with the keys in hand
    """

    type: Literal["make"]
    prompt: Text
    seconds: Annotated[float, Field(gt=0, le=limits.MAX_SECONDS)]
    seed: Count = 0
    mode: Literal["tv2tv", "t2v", "think2v"] | None = None
    steps: Annotated[int, Field(ge=1, le=limits.MAX_STEPS)]
    temperature: Annotated[float, Field(ge=0, le=10)]
    cfg: Annotated[float, Field(ge=0, le=50)]
    solver: Literal["euler", "heun", "dpmpp"] = "euler"
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    picture: bool = False
    example: Count | None = None
    image_words: Text | None = None
    game: bool = False


class Edit(Command):
    """Say `text` before a chunk that is not made yet."""

    type: Literal["edit"]
    take: Count
    chunk: Count
    text: Text


class Branch(Command):
    """A new video that shares the chunks before `chunk`; None: the model's own words, the same seed."""

    type: Literal["branch"]
    take: Count
    chunk: Count
    text: Text | None = None
    seed: Count | None = None


class Control(Command):
    """Hold the making of a take, go on, end it where it is, or forget it."""

    type: Literal["pause", "resume", "stop", "close"]
    take: Count


class Play(Command):
    """Take the game's controls, or give them back to the model."""

    type: Literal["play"]
    take: Count
    on: bool


class Keys(Command):
    """What is held down now."""

    type: Literal["keys"]
    take: Count
    move: Annotated[int, Field(ge=-1, le=1)] = 0
    turn: Annotated[int, Field(ge=-1, le=1)] = 0
    jump: Bit = 0
    shoot: Bit = 0
    reload: Bit = 0


AnyCommand = Make | Edit | Branch | Control | Play | Keys
_COMMAND: TypeAdapter[AnyCommand] = TypeAdapter(Annotated[AnyCommand, Field(discriminator="type")])


def parse(message: str) -> AnyCommand:
    """The command that a message says. Raises ValueError with one sentence."""
    if len(message) > limits.MAX_MESSAGE_BYTES:
        raise ValueError(f"a message may have {limits.MAX_MESSAGE_BYTES} bytes: say it in fewer words")
    try:
        return _COMMAND.validate_json(message)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where[:80] + ': ' if where else ''}{first['msg'][:100]}"  # both may repeat the message
        raise ValueError(f"this message makes no sense: {reason}") from None


RAW_PIXELS = 128 * 128
"""Pictures up to this size travel as they are; larger ones as JPEG."""
HEADER = struct.Struct("<7I")
"""Take, chunk, first frame, number of frames, width, height, and 0 for raw pixels or 1 for JPEG."""


def pack_frames(take: int, chunk: int, first: int, frames: np.ndarray) -> bytes:
    """One chunk's frames uint8 [n, H, W, 3] as a binary message.

    After the header: the pixels; or the n lengths of the JPEG files as uint32, then the files.
    """
    count, height, width, _ = frames.shape
    if width * height <= RAW_PIXELS:
        return HEADER.pack(take, chunk, first, count, width, height, 0) + frames.tobytes()
    files = [_jpeg(frame) for frame in frames]
    lengths = struct.pack(f"<{count}I", *map(len, files))
    return b"".join([HEADER.pack(take, chunk, first, count, width, height, 1), lengths, *files])


def _jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return file.getvalue()

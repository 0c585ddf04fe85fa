"""What a person asks for in files and words, as a Request: pictures, videos, held-out examples, timelines."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatv.config import FPS
from megatv.data.format import check_codec
from megatv.data.picture import FORMATS, decode_picture
from megatv.data.remote import open_shards
from megatv.data.sequence import texts_by_chunk
from megatv.data.shards import Shards
from megatv.data.video import iterate_video
from megatv.log import say
from megatv.model.codec import clip_encoder, latents_to_frames
from megatv.regular_file import read_bytes
from megatv.sample.request import Intervention, Mode, Request
from megatv.sample.sampler import Sampler
from megatv.schema import short
from megatv.untrusted import json_lines, plain_name, text_lines

MAX_NAME_BYTES = 200
"""Of a video's name in a batch, to which `outputs` adds some for a moment."""


@dataclass(frozen=True)
class Asked:
    """One video as it is asked for on the command line or in a line of a batch file.

    image, video, example   what it starts from: a picture, a video's frames, or a held-out example (data.val)
    image_words             words of the picture, where the training data has some
    The rest are those of `Request`.
    """

    prompt: str | None = None
    image: str | None = None
    image_words: str | None = None
    video: str | None = None
    example: int | None = None
    interventions: tuple[Intervention, ...] = ()
    seconds: float | None = None
    seed: int = 0
    mode: Mode | None = None

    def request(self, sampler: Sampler) -> Request:
        """Read what it starts from. Raises ValueError with one sentence for what cannot be read or used."""
        self.check()
        keys = ("interventions", "seconds", "seed", "mode")
        request = Request(self.prompt or "", **{key: getattr(self, key) for key in keys})
        if self.image is not None:
            size = sampler.config.video
            given = () if self.image_words is None else (self.image_words,)
            picture = read_picture(self.image, size.width, size.height)
            return dataclasses.replace(request, first_image=picture, given_words=given)
        if self.video is not None:
            return dataclasses.replace(request, first_latents=read_start(self.video, sampler))
        if self.example is not None:
            caption, words, latent = read_example(sampler, self.example)
            prompt = caption if self.prompt is None else self.prompt
            return dataclasses.replace(request, prompt=prompt, first_latents=latent, given_words=(words,))
        return request

    def check(self) -> None:
        """Raise ValueError for what no model can make."""
        words = (self.prompt, self.image_words, *(said.text for said in self.interventions))
        if any("\ud800" <= c <= "\udfff" for text in words if text is not None for c in text):
            raise ValueError("a text is not UTF-8, or has half a character (a lone \\ud800) in it")
        if self.prompt is None and self.example is None:
            raise ValueError(
                "nothing to start from: give --prompt, or --example to take a held-out example's"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed}: must be 0 or more, and below 2^63")
        if sum(start is not None for start in (self.image, self.video, self.example)) > 1:
            raise ValueError("a video starts from one thing: a picture, a video or an example")


def read_intervention(text: str, where: str = "--intervene") -> Intervention:
    """ "SECONDS:TEXT", such as "1.56:He kicks the ball". Raises ValueError that names `where`."""
    time, colon, words = text.partition(":")
    try:
        seconds = float(time)
    except ValueError:
        seconds = math.nan
    if not colon or not math.isfinite(seconds):
        raise ValueError(f"{where} '{text}': write SECONDS:TEXT, such as \"1.56:He kicks the ball\"")
    return Intervention(seconds, words)


def read_timeline(path: str) -> tuple[Intervention, ...]:
    """Interventions of a file, a line "SECONDS:TEXT" each; empty lines and those from # on are skipped."""
    return tuple(
        read_intervention(line, f"{path}, line {number}:")
        for number, line in _lines(path, "--timeline")
        if not line.startswith("#")
    )


def read_batch(path: str) -> dict[str, Asked]:
    """Videos by name of a JSONL file, a line each: {"name": "a", "prompt": "...", ...}, see `Asked`.

    "interventions" are [seconds, text] pairs. Raises ValueError with file and line for anything else.
    """
    found: dict[str, Asked] = {}
    known = {field.name for field in dataclasses.fields(Asked)}
    for where, tree in json_lines(Path(path)):
        if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
            raise ValueError(f'{where}: write an object with a "name", which becomes the name of its folder')
        name = tree.pop("name")
        if not _names_folder(name):
            raise ValueError(
                f"{where}: the name {repr(name)[:80]} cannot be that of a folder; give at most 200 bytes of "
                "UTF-8 without slashes, that do not begin with a dot"
            )
        if name in found:
            raise ValueError(f"{where}: the name '{name}' is another line's already")
        if unknown := sorted(set(tree) - known):
            raise ValueError(f"{where}: '{unknown[0]}' is unknown: use {', '.join(sorted(known))}")
        found[name] = _asked(tree, where)
    if not found:
        raise ValueError(f"{path}: asks for no video")
    return found


def read_picture(path: str, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3] of a picture file. Raises ValueError when it is none."""
    try:
        pixels, (was_width, was_height) = decode_picture(Path(path), width, height)
    except OSError as error:
        raise ValueError(f"--image {path}: cannot be read ({error.strerror}); give a {FORMATS}") from None
    except ValueError as error:
        raise ValueError(f"--image {path}: {error}") from None
    if (was_width, was_height) != (width, height):
        say(f"{path}: resized from {was_width}x{was_height} to the model's {width}x{height}")
    return pixels


def read_start(path: str, sampler: Sampler) -> np.ndarray:
    """Normalised latents [k, C, h, w] of a video's start: whole chunks, half a training example at most."""
    size, most = sampler.config.video, max(1, sampler.config.latents // 2)
    shown = iterate_video(path, width=size.width, height=size.height)
    frames = np.stack(list(itertools.islice(shown, latents_to_frames(most))))
    chunks = max(k for k in range(1, most + 1) if latents_to_frames(k) <= len(frames))
    frames = frames[: latents_to_frames(chunks)]
    say(f"{path}: its first {len(frames)} frames at {FPS} fps are the first {chunks} chunks")
    return sampler.encode(frames[None])[0].cpu().numpy()


def held_out(sampler: Sampler) -> Shards:
    """The shards of data.val. ValueError without them, for those of another codec, or when a stranger's
    checkpoint names them and the user does not (`megatv.checkpoint.trust`).
    """
    config = sampler.config
    if config.data.val is None:
        raise ValueError(
            "there are no held-out examples: data.val of the checkpoint's config is null; name them in --data"
        )
    if "data.val" in sampler.refused:
        raise ValueError(sampler.refused["data.val"])
    shards = open_shards(config.data.val, config.data, lambda: clip_encoder(sampler.codec))
    check_codec(shards.info, config.codec, shards.path)
    return shards


def read_example(sampler: Sampler, index: int) -> tuple[str, str, np.ndarray]:
    """Meta-caption, first words and first latent [1, C, h, w], normalised for the model, of an example."""
    shards = held_out(sampler)
    if not 0 <= index < len(shards):
        raise ValueError(f"--example {index}: {shards.path} has examples 0 to {len(shards) - 1}")
    example = shards[index]
    latent = sampler.stats.normalize(shards.stats.denormalize(example.latents[:1]))
    return example.meta_caption, "\n".join(texts_by_chunk(example)[0]), latent


def _lines(path: str, option: str) -> Iterable[tuple[int, str]]:
    try:
        text = read_bytes(path, links=True).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path}: cannot be read as text ({error})") from None
    return [(n, line.strip()) for n, line in enumerate(text_lines(text), 1) if line.strip()]


def _names_folder(name: str) -> bool:
    """Whether a folder may have this name, and the longer one that it has until it is whole."""
    try:
        return not plain_name(name).startswith(".") and len(name.encode()) <= MAX_NAME_BYTES
    except ValueError:
        return False


KINDS: dict[str, tuple[type, ...]] = {"example": (int,), "seed": (int,), "seconds": (int, float)}


def _asked(tree: dict[str, Any], where: str) -> Asked:
    spoken = tree.pop("interventions", [])
    for key, value in tree.items():
        if isinstance(value, bool) or not isinstance(value, KINDS.get(key, (str,))):
            raise ValueError(f"{where}: {key} is {short(value)}: write {KINDS.get(key, (str,))[-1].__name__}")
        if isinstance(value, (int, float)) and not abs(value) < 2**63:  # or no number at all
            raise ValueError(f"{where}: {key} is {short(value)}: it must be below 2^63")
    if tree.get("mode", "tv2tv") not in ("tv2tv", "t2v", "think2v"):
        raise ValueError(f"{where}: mode '{tree['mode']}' is unknown: use tv2tv, t2v or think2v")
    try:
        pairs = tuple(Intervention(float(seconds), text) for seconds, text in spoken)
        assert all(math.isfinite(pair.seconds) and isinstance(pair.text, str) for pair in pairs)
    except (ArithmeticError, TypeError, ValueError, AssertionError):
        raise ValueError(f"{where}: interventions are a list of [seconds, text]") from None
    return Asked(**tree, interventions=pairs)

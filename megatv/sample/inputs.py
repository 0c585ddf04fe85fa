"""What a person asks for in files and words, as a Request: pictures, videos, held-out examples, timelines."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatv.config import FPS
from megatv.data.format import check_codec
from megatv.data.picture import FORMATS, decode_picture
from megatv.data.remote import open_shards
from megatv.data.sequence import chunk_of_text, texts_by_chunk
from megatv.data.shards import Shards
from megatv.data.video import iterate_video
from megatv.log import say
from megatv.model.codec import clip_encoder, latents_to_frames
from megatv.regular_file import read_bytes
from megatv.sample.request import Intervention, Mode, Request, Speaker
from megatv.sample.sampler import Sampler
from megatv.untrusted import text_lines


@dataclass(frozen=True)
class Asked:
    """One video as it is asked for on the command line or in a line of a batch file.

    image, video, example   what it starts from: a picture, a video's frames, or a held-out example (data.val)
    start_words   who says the words before what is given: the `model` (by default), `none`, or they are
                  `given`: by image_words, by video_words, or by the example, which has its own
    image_words   yours for t = 0, before a picture or an example's first frame
    video_words   yours before a video's chunks, with their times; a chunk without any has silence
    The rest are those of `Request`.
    """

    prompt: str | None = None
    image: str | None = None
    video: str | None = None
    example: int | None = None
    start_words: Speaker | None = None
    image_words: str | None = None
    video_words: tuple[Intervention, ...] | None = None
    interventions: tuple[Intervention, ...] = ()
    seconds: float | None = None
    seed: int = 0
    mode: Mode | None = None

    @property
    def speaker(self) -> Speaker:
        """Who says the words before what is given."""
        return self.start_words or ("given" if self._has_words else "model")

    @property
    def _has_words(self) -> bool:
        return self.image_words is not None or self.video_words is not None

    def request(self, sampler: Sampler) -> Request:
        """Read what it starts from. Raises ValueError with one sentence for what cannot be read or used."""
        self.check()
        keys = ("interventions", "seconds", "seed", "mode")
        request = Request(self.prompt or "", **{key: getattr(self, key) for key in keys})
        if self.image is not None:
            size = sampler.config.video
            picture = read_picture(self.image, size.width, size.height)
            return dataclasses.replace(request, first_image=picture, given_words=self._given_words(1))
        if self.video is not None:
            latents = read_start(self.video, sampler)
            words = self._given_words(len(latents))
            return dataclasses.replace(request, first_latents=latents, given_words=words)
        if self.example is not None:
            caption, own, latent = read_example(sampler, self.example)
            prompt = caption if self.prompt is None else self.prompt
            words = self._given_words(1, own)
            return dataclasses.replace(request, prompt=prompt, first_latents=latent, given_words=words)
        return request

    def _given_words(self, chunks: int, own: str = "") -> tuple[str, ...]:
        """Words before so many given chunks, unless the model says them; own: an example's."""
        if self.speaker == "model":
            return ()
        if self.speaker == "none":
            return ("",) * chunks
        if self.video is None:
            return (own if self.image_words is None else self.image_words,)
        words: list[list[str]] = [[] for _ in range(chunks)]
        for said in self.video_words or ():
            # no chunk lasts a second, and times without bounds are no frames
            if not (0 <= said.seconds < chunks and (chunk := chunk_of_text(said.seconds)) < chunks):
                raise ValueError(
                    f"--video-words at {said.seconds:g} s: the video gives {chunks} chunks, and none starts "
                    "there or later; words for chunks that are to be made are --intervene or --timeline"
                )
            words[chunk].append(said.text)
        return tuple("\n".join(texts) for texts in words)

    def check(self) -> None:
        """Raise ValueError for what no model can make."""
        spoken = (*self.interventions, *(self.video_words or ()))
        words = (self.prompt, self.image_words, *(said.text for said in spoken))
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
        self._check_start_words()

    def _check_start_words(self) -> None:
        if self.image_words is not None and self.image is None and self.example is None:
            raise ValueError("--image-words: there is no picture; give --image or --example, too")
        if self.video_words is not None and self.video is None:
            raise ValueError("--video-words: there is no video to start from; give --video, too")
        if self.start_words is None:
            return
        if self.image is None and self.video is None and self.example is None:
            raise ValueError(
                f"--start-words {self.start_words}: nothing is given to start from, so the model says all "
                "words; give --image, --video or --example, too"
            )
        if self._has_words and self.start_words != "given":
            raise ValueError(f"--start-words {self.start_words}: there are words of yours; leave one out")
        if self.start_words == "given" and not self._has_words and self.example is None:
            option = "--image-words" if self.video is None else "--video-words"
            raise ValueError(f"--start-words given: there are no words; give {option}, too")


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


def read_timeline(path: str, option: str = "--timeline") -> tuple[Intervention, ...]:
    """Timed words of a file, a line "SECONDS:TEXT" each; empty lines and those from # on are skipped."""
    return tuple(
        read_intervention(line, f"{path}, line {number}:")
        for number, line in _lines(path, option)
        if not line.startswith("#")
    )


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

"""What a person asks of the sampler, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["tv2tv", "t2v", "think2v"]
Speaker = Literal["model", "none", "given"]
"""Who says the words before given chunks: the model, nobody, or whoever gives the chunks."""


@dataclass(frozen=True)
class Intervention:
    """`text` replaces the model's own words for the first chunk that starts at or after `seconds`."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Request:
    """One video to make.

    prompt         the meta-caption
    first_image    uint8 [H, W, 3] of the configured size, shown by chunk 0; None: chunk 0 is generated too
    first_latents  float32 [k, C, h, w], normalised: the first k chunks, in place of `first_image`
    given_words    yours before the first given chunks, in order; "" is silence. Where there is None, or no
                   entry, the model says them: the meta-prompt and a frame are given, "and the rest of the
                   sequence is model-generated" (TV2TV figure 3; tables 2 to 4 have its words of t = 0)
    interventions  words of the user's; what would fall on a given chunk moves on to the first generated one
    seconds        the video lasts at least so long; None: as long as one training example
    seed           of all its randomness, whatever else is in the batch
    mode           how words and chunks are laid out (TV2TV figure 3); None: as the model was trained
    """

    prompt: str
    first_image: np.ndarray | None = None
    first_latents: np.ndarray | None = None
    given_words: tuple[str | None, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    seconds: float | None = None
    seed: int = 0
    mode: Mode | None = None


@dataclass(frozen=True)
class ChunkWords:
    """The words of one chunk, a given one's too.

    source   the model's own, `given` with a given chunk, or put in (`forced`)
    cut      the text budget ended them, not the model
    given    the chunk after them is one of the request's
    """

    start_seconds: float
    text: str
    source: Literal["given", "own", "forced"]
    cut: bool = False
    given: bool = False


@dataclass(frozen=True)
class Result:
    """One finished video of N chunks.

    latents        float32 [N, C, h, w], normalised
    frames         uint8 [F, H, W, 3]
    transcript     one entry a chunk
    plan           Think2V's plan, interventions included; empty in other modes
    ended          the model said EOS, or filled its context (`sample.when_full: end`), before the length that
                   was asked for
    prompt_tokens, text_tokens, video_tokens   of the prompt, of all words after it, of the N chunks
    """

    latents: np.ndarray
    frames: np.ndarray
    transcript: tuple[ChunkWords, ...]
    plan: str
    ended: bool
    prompt_tokens: int
    text_tokens: int
    video_tokens: int

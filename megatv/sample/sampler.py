"""The sampler: think in words, act in pixels, chunk by chunk (TV2TV section 2.3).

Before every chunk each sequence is in text mode: the model speaks until it says BOF. Then all sequences of
the batch draw their chunk together: Gaussian noise, solver steps against the cache, a clean pass at t = 1
that writes the chunk into the cache, and EOF, which the sampler appends; its logits give the next word. Words
and chunks that are there already (the user's, the given frame's, those kept by a sliding window) take the
same path: known words are prefilled in one pass, known chunks skip the solver.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megatv.checkpoint.load import find_checkpoint, load_model
from megatv.checkpoint.origin import require_codec
from megatv.checkpoint.trust import STRANGER, Trust, admit
from megatv.config import LATENT_CHANNELS, Config, SampleConfig
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import Tokenizer, load_tokenizer
from megatv.log import progress
from megatv.model.codec import Codec, latents_to_frames, load_codec
from megatv.model.mot import MoT
from megatv.model.precision import Precision, choose_precision
from megatv.parallel.mesh import Mesh
from megatv.sample.context import Context
from megatv.sample.decoding import BackgroundDecoder
from megatv.sample.draft import Draft
from megatv.sample.events import ChunkStarted, Event, TextToken
from megatv.sample.request import Request, Result
from megatv.sample.script import Script
from megatv.sample.solver import SOLVERS, draw_noise, generator, guide, pick_tokens
from megatv.sample.speech import Speech
from megatv.sample.timeline import Window, plan_windows


def usable_device(device: torch.device | str) -> torch.device:
    """The device, once it has held a tensor. Raises ValueError in the words of `--device` if it cannot."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: cannot be used here ({reason}); try cpu") from None


def some_device() -> str:
    """Where nobody names a device: the GPU, or the CPU where there is none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Sampler:
    """Makes videos with a model.

    step        of the checkpoint that it came from, if it did
    refused     why shards that this checkpoint's config names must not be opened, by key
    precision   what the model is in, and what keys and values are kept in: the model's dtype if not given
    unsayable   bool [V]: tokens that are never the model's to say

    Latents, velocities and logits are fp32 between the model's passes, whatever it is in.
    """

    step: int | None = None
    refused: Mapping[str, str] = {}

    def __init__(
        self,
        model: MoT,
        config: Config,
        tokenizer: Tokenizer,
        codec: Codec,
        stats: LatentStats,
        precision: Precision | None = None,
    ) -> None:
        self.model, self.config, self.tokenizer = model, config, tokenizer
        dtype = model.embed.position.dtype
        self.precision = precision or Precision(str(dtype).removeprefix("torch."), dtype, dtype)
        self.codec, self.stats = codec, stats
        self.device = model.embed.position.device
        sayable = torch.zeros(config.model.vocab, dtype=torch.bool, device=self.device)
        sayable[: tokenizer.bos] = True  # all words; of the markers, BOS and EOF are never the model's to say
        sayable[[tokenizer.bof, tokenizer.eos]] = True
        self.unsayable = ~sayable

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        weights: Literal["ema", "model", "auto"] = "auto",
        precision: str = "auto",
        mesh: Mesh | None = None,
        trust: Trust = STRANGER,
    ) -> Sampler:
        """A sampler from a checkpoint, or from a run's newest.

        precision  fp32, bf16, fp8 (see `megatv.model.precision`) or `auto`: bf16 on a GPU, fp32 on a CPU
        mesh       of tensor-parallel siblings that hold the model together (`megatv.sample.ranks`): all of
                   them then make the same calls and get the same results
        trust      what the user allows the checkpoint, which is a stranger's by default
        Raises ValueError when anything is missing, the device cannot be used or does not have the precision,
        the config names a codec or a tokenizer that must not be followed, or the codec's weights are not
        those of the training.
        """
        device = usable_device(device)
        chosen = choose_precision(precision, device)
        checkpoint, meta, config = find_checkpoint(path)
        config, refused = admit(config, path, trust)
        stats = LatentStats.from_dict(meta["latent_stats"], f"{checkpoint}: latent_stats")
        tokenizer = load_tokenizer(config.tokenizer.path, config.model.vocab)
        codec = load_codec(config.codec, device, trust=trust.codec)
        require_codec(meta, config.codec, path)
        model, config = load_model(checkpoint, meta, config, weights, device, chosen, mesh)
        sampler = cls(model, config, tokenizer, codec, stats, chosen)
        sampler.step, sampler.refused = meta["step"], refused
        return sampler

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], settings: SampleConfig | None = None, desc: str = ""
    ) -> list[Result]:
        """Make all `requests` in one batch; what one of them yields does not depend on the others.

        settings  solver steps, text temperature, guidance; the config's by default. `desc` names the progress
        bar, without it there is none. Raises ValueError when a request does not fit the model.
        """
        settings = settings or self.config.sample
        drafts = [self.draft(request, settings) for request in requests]
        bar = iter(progress(range(sum(draft.script.chunks for draft in drafts)), desc=desc)) if desc else None
        for _, event in self.events(drafts, settings):
            if bar is not None and isinstance(event, ChunkStarted):
                next(bar, None)
        return [draft.result() for draft in drafts]

    def encode(self, frames: np.ndarray) -> Tensor:
        """Normalised latents [B, N, C, h, w] of uint8 frames [B, F, H, W, 3] that open a group."""
        return self.stats.normalize(self.codec.encode(torch.from_numpy(frames))).to(self.device)

    def draft(self, request: Request, settings: SampleConfig) -> Draft:
        """Check a request against the model and bring its given chunks into latents."""
        video, config = self.config.video, self.config
        given: list[Tensor] = []
        if request.first_latents is not None:
            shape = (LATENT_CHANNELS, config.latent_height, config.latent_width)
            if (
                request.first_latents.shape[1:] != shape
                or not 1 <= len(request.first_latents) <= config.latents
            ):
                raise ValueError(
                    f"first_latents have shape {request.first_latents.shape}: the model takes 1 to "
                    f"{config.latents} latents of shape {shape}"
                )
            given = list(torch.from_numpy(request.first_latents).to(self.device, torch.float32))
        elif request.first_image is not None:
            image = request.first_image
            if image.shape != (video.height, video.width, 3) or image.dtype != np.uint8:
                raise ValueError(
                    f"the first image is {image.dtype} {image.shape}: the model takes uint8 "
                    f"({video.height}, {video.width}, 3); resize it"
                )
            given = list(self.encode(image[None, None])[0])
        script = Script(request, len(given), config, self.tokenizer, settings)
        return Draft(request, script, given, config)

    def events(
        self, drafts: list[Draft], settings: SampleConfig, *, overlap: bool = False
    ) -> Iterator[tuple[int, Event]]:
        """Make the videos of `drafts` side by side: (row, event) as it happens, all but `Finished`.

        All of them are live or none is: words that nobody hears have no events, and windows that nobody
        watches are decoded whole. overlap: live ones are decoded while their next chunk is made.
        """
        chunks = max(draft.script.chunks for draft in drafts)
        for window in plan_windows(chunks, self.config.video.groups, settings.keep_first_frame):
            if not all(draft.script.ended for draft in drafts):
                yield from self._window(drafts, window, settings, overlap)

    def _window(
        self, drafts: list[Draft], window: Window, settings: SampleConfig, overlap: bool
    ) -> Iterator[tuple[int, Event]]:
        """Make one window of every video."""
        live = drafts[0].script.live
        rows, copies = len(drafts), 1 if settings.cfg == 1 else 2
        recoded = self.encode(np.stack([d.frames[-1][-1:] for d in drafts]))[:, 0] if window.recoded else None
        for row, draft in enumerate(drafts):
            draft.open(window, None if recoded is None else recoded[row])
        slots = max(draft.script.slots() for draft in drafts)
        slots += len(window.chunks) * self.config.tokens_per_chunk
        frames = 0 if live else rows * latents_to_frames(len(window.chunks))
        context = Context.empty(self.model, rows * copies, slots, self.precision.stored, frames)
        tokens = self.tokenizer
        heads = [draft.script.head() for draft in drafts]
        # Guidance: every sequence has a text-free twin with BOS, BOF and EOF only, at positions of its own.
        twins = [[tokens.bos]] * (rows * (copies - 1))
        with BackgroundDecoder(self.codec) as decoder:
            for chunk in window.chunks:
                heads = yield from self._speak(
                    drafts, chunk, heads, context.rows(slice(rows)), decoder, settings
                )
                for row, draft in enumerate(drafts):
                    if (started := draft.started(chunk)) is not None:
                        yield row, started
                context.text([[*ids, tokens.bof] for ids in heads + twins])
                drawn = yield from self._draw(drafts, chunk, context, decoder, settings)
                for draft, latent in zip(drafts, drawn, strict=True):
                    draft.add(chunk, latent)
                yield from self._decoded(drafts, decoder, wait=True)  # no more than one chunk behind
                if live and chunk >= 0 and (chunk >= window.kept or window.recoded):
                    decoder.push(chunk, self.stats.denormalize(drawn[:, None], chunk)[:, 0])
                    yield from self._decoded(drafts, decoder, wait=not overlap)
                heads, twins = ([[tokens.eof] for _ in part] for part in (heads, twins))
                if all(draft.script.ended for draft in drafts):
                    break
            yield from self._decoded(drafts, decoder, wait=True)
        if live:
            return
        latents = self.stats.denormalize(torch.stack([draft.fresh() for draft in drafts]))
        for draft, frames in zip(drafts, self.codec.decode(latents).cpu().numpy(), strict=True):
            draft.frames.append(frames[1:] if window.recoded else frames)

    def _decoded(
        self, drafts: list[Draft], decoder: BackgroundDecoder, *, wait: bool
    ) -> Iterator[tuple[int, Event]]:
        """The pictures that are there by now, or (`wait`) all that were begun."""
        for chunk, batch in decoder.frames(wait=wait):
            for draft, (row, frames) in zip(drafts, enumerate(batch), strict=True):
                if chunk >= draft.window.kept:
                    yield row, draft.decoded(chunk, frames)

    def _speak(
        self,
        drafts: list[Draft],
        chunk: int,
        heads: list[list[int]],
        context: Context,
        decoder: BackgroundDecoder,
        settings: SampleConfig,
    ) -> Generator[tuple[int, Event], None, list[list[int]]]:
        """Text mode before a chunk, until every sequence is ready for BOF.

        `heads` are the tokens that are not in the context yet; returns those that are not when it ends.
        """
        tokenizer = self.tokenizer
        speeches = [draft.script.speech(chunk, head) for draft, head in zip(drafts, heads, strict=True)]
        streams = [generator(draft.request.seed, draft.script.index(chunk), "text") for draft in drafts]
        while active := [row for row, speech in enumerate(speeches) if speech.open]:
            logits = context.text([speech.flush() for speech in speeches])[active]
            logits = logits.masked_fill(self._forbidden([speeches[row] for row in active]), -torch.inf)
            uniform = [streams[row].random() for row in active]
            tokens = pick_tokens(logits, settings.temperature, uniform, settings.top_p)
            for row, token in zip(active, tokens, strict=True):
                script = drafts[row].script
                script.ended |= token == tokenizer.eos
                if speeches[row].hear(token, tokenizer) and script.live:
                    yield row, TextToken(script.index(chunk), speeches[row].news(tokenizer))
            yield from self._decoded(drafts, decoder, wait=False)
            for row in active:
                words = drafts[row].script.interrupted(chunk)
                if words is not None:
                    context.rewind(row, speeches[row].replace(words))
        for row, (draft, speech) in enumerate(zip(drafts, speeches, strict=True)):
            draft.script.ended |= speech.spilled
            words = draft.script.say(chunk, tuple(speech.said), cut=speech.cut)
            if words != tuple(speech.said):
                context.restart(row)
                speech.pending = [*draft.script.head(), *words]
        return [speech.pending for speech in speeches]

    def _forbidden(self, speeches: list[Speech]) -> Tensor:
        """bool [B, V], or [V] for all: tokens that may not come next."""
        if all(speech.choices is None and speech.may_end for speech in speeches):
            return self.unsayable
        forbidden = self.unsayable.repeat(len(speeches), 1)
        for row, speech in enumerate(speeches):
            forbidden[row, self.tokenizer.eos] |= not speech.may_end
            if speech.choices is not None:
                forbidden[row] = True
                forbidden[row, speech.choices] = self.unsayable[speech.choices]
        return forbidden

    def _draw(
        self,
        drafts: list[Draft],
        chunk: int,
        context: Context,
        decoder: BackgroundDecoder,
        settings: SampleConfig,
    ) -> Generator[tuple[int, Event], None, Tensor]:
        """The next chunk of every video, float32 [B, C, h, w]: solved or known; then a clean pass."""
        clean, noisy = context.chunk()
        known = [draft.known(chunk) for draft in drafts]
        copies = context.cache.lengths.shape[0] // len(drafts)

        def velocity(x: Tensor, t: float) -> Tensor:
            v = context.velocity(x.repeat(copies, 1, 1, 1), t, noisy)
            return guide(v, settings.cfg) if copies == 2 else v

        noise = np.stack([self._noise(draft, chunk) for draft in drafts])
        drawn = torch.from_numpy(noise).to(self.device)
        if any(latent is None for latent in known):
            for x in SOLVERS[settings.solver](velocity, drawn, settings.steps):
                drawn = x
                yield from self._decoded(drafts, decoder, wait=False)
        for row, latent in enumerate(known):
            if latent is not None:
                drawn[row] = latent
        context.write(drawn.repeat(copies, 1, 1, 1), clean)
        return drawn

    def _noise(self, draft: Draft, chunk: int) -> np.ndarray:
        shape = (LATENT_CHANNELS, self.config.latent_height, self.config.latent_width)
        return draw_noise(draft.request.seed, draft.script.index(chunk), shape)

"""The same sequences through a model's cache in one precision, for `compare_precisions.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatv.config import Config
from megatv.data.sequence import fit
from megatv.sample.context import Context
from megatv.sample.inputs import held_out
from megatv.sample.sampler import Sampler
from time_sample import sizes  # the tool beside this one

import numpy as np
import torch
from torch import Tensor

TIMES = (0.1, 0.5, 0.9)
"""Of the noisy chunks; at 0 they are noise."""


@dataclass(frozen=True)
class Replayed:
    """A sequence to be replayed: the tokens before every chunk, and latents float32 [N, C, h, w]."""

    words: list[list[int]]
    latents: np.ndarray


def held(sampler: Sampler, count: int) -> list[Replayed]:
    """Whole held-out examples, normalised for the model."""
    shards, config = held_out(sampler), sampler.config
    whole = [e for e in map(shards.__getitem__, range(len(shards))) if e.valid_latents == config.latents]
    if len(whole) < count:
        raise ValueError(f"{shards.path} has {len(whole)} whole examples: --examples {count}")
    made = []
    for example in whole[:count]:
        plan = fit(example, sampler.tokenizer, config.sequence, config.text_rows_per_example)
        runs = [run.ids for run in plan.runs(sampler.tokenizer)][: len(plan.before)]
        latents = sampler.stats.normalize(shards.stats.denormalize(example.latents[: len(runs)]))
        made.append(Replayed(runs, latents))
    return made


def drawn(sampler: Sampler, count: int) -> list[Replayed]:
    """Random words and latents, of a whole example's length."""
    config, tokens, rng = sampler.config, sampler.tokenizer, np.random.default_rng(0)
    most = config.text_rows_per_example // config.latents - 2  # beside BOF and EOF
    return [
        Replayed(
            [
                [tokens.eof if i else tokens.bos, *rng.integers(0, tokens.bos, most).tolist(), tokens.bof]
                for i in range(config.latents)
            ],
            rng.standard_normal((config.latents, 16, config.latent_height, config.latent_width), np.float32),
        )
        for _ in range(count)
    ]


@torch.inference_mode()
def replay(sampler: Sampler, examples: list[Replayed]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Sizes of the model and its cache; likeliest tokens int64 [T]; velocities [V, B, C, h, w] of all times.

    Tokens are those that follow a token but BOF, after which nothing is the model's to choose.
    """
    config, rng = sampler.config, np.random.default_rng(1)
    slots = max(slots_of(example, config) for example in examples)
    context = Context.empty(sampler.model, len(examples), slots, sampler.precision.stored)
    tokens, velocities = [], []
    for chunk in range(min(len(example.words) for example in examples)):
        words = [example.words[chunk] for example in examples]
        for place in range(max(map(len, words))):
            logits = context.text([row[place : place + 1] for row in words])
            chosen = [place < len(row) - 1 for row in words]
            tokens.append(logits.masked_fill(sampler.unsayable, -torch.inf).argmax(-1)[chosen].cpu())
        clean, noisy = context.chunk()
        latents = torch.from_numpy(np.stack([example.latents[chunk] for example in examples]))
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        for t in TIMES:
            x = t * latents + (1 - t) * noise
            velocities.append(context.velocity(x.to(sampler.device), t, noisy).cpu())
        context.write(latents.to(sampler.device), clean)
    return sizes(sampler.model, context.cache), torch.cat(tokens), torch.stack(velocities)


def slots_of(example: Replayed, config: Config) -> int:
    """Rows of the cache that the sequence takes."""
    return sum(map(len, example.words)) + len(example.latents) * config.tokens_per_chunk

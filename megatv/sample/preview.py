"""A glance at a model in training: a few starts continued in a few Euler steps, one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from megatv.config import CodecConfig, Config
from megatv.data.shards import Shards
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import Tokenizer
from megatv.model.codec import Codec, load_codec
from megatv.model.mot import MoT
from megatv.sample.render import Strip, contact_sheet
from megatv.sample.request import Request
from megatv.sample.sampler import Sampler
from megatv.types import Example

STARTS, STEPS = 3, 4


def preview(
    model: MoT,
    config: Config,
    tokenizer: Tokenizer,
    stats: LatentStats,
    examples: Shards | Sequence[Example],
    out: Path,
    step: int,
    *,
    trust_codec: bool = False,
) -> None:
    """Continue the first frames of the first three examples and save a contact sheet as PNG `out`.

    The same starts and seeds at every step, so that pictures of different steps can be compared.
    trust_codec: whether a TorchScript codec may run (`load_codec`).
    """
    codec = preview_codec(config.codec, str(model.embed.position.device), trust_codec)
    sampler = Sampler(model, config, tokenizer, codec, stats)
    chosen = [examples[i] for i in range(min(STARTS, len(examples)))]
    requests = [
        Request(example.meta_caption, first_latents=example.latents[:1], seed=seed)
        for seed, example in enumerate(chosen)
    ]
    settings = dataclasses.replace(config.sample, steps=min(STEPS, config.sample.steps))
    results = sampler.generate(requests, settings)
    strips = [Strip.of(f"start {i}", result) for i, result in enumerate(results)]
    partial = out.with_name(f".{out.name}.partial")
    contact_sheet(strips, chosen[0].meta_caption, f"step {step}, {settings.steps} Euler steps").save(
        partial, format="png"
    )
    partial.replace(out)


@cache
def preview_codec(config: CodecConfig, device: str, trust: bool) -> Codec:
    """The codec of all previews, loaded once. Raises ValueError as `load_codec` does."""
    return load_codec(config, device, trust=trust)

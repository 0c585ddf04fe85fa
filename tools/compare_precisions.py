"""What bf16 and fp8 cost in quality: the same sequences through one model in every precision.

    python tools/compare_precisions.py --checkpoint runs/toy_world [--examples 8] [--out precisions.json]
    python tools/compare_precisions.py --config configs/toy_world.yaml "codec={kind: dct}"   # random weights

Whole held-out examples (data.val) pass the cache as in sampling: their words one by one, every chunk noisy at
three times and then clean; for a model of random weights they are random words and latents, and the figures
say only that it runs. Everything goes by what fp32 makes of the same input: how far the velocities are off,
root mean square over its own, and how many of the words that the model may choose have the same likeliest
token. Errors do not add up as in a video of its own, where every chunk sees the errors of those before. No
figure here is one of speed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

from bench_sample import add_model, named_model, sizes  # the tool beside this one
from megatv.config import Config
from megatv.data.sequence import fit
from megatv.log import main_guard
from megatv.model.precision import PRECISIONS
from megatv.regular_file import require_place
from megatv.sample import Sampler
from megatv.sample.context import Context
from megatv.sample.inputs import held_out

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


def main() -> None:
    """Replay, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model(parser)
    parser.add_argument("--examples", type=int, default=8, help="sequences, side by side")
    args = parser.parse_intermixed_args()
    if args.examples < 1:
        raise ValueError(f"--examples {args.examples}: must be at least 1")
    require_place(args.out)
    found: dict[str, dict[str, Any]] = {}
    exact: tuple[Tensor, Tensor] | None = None
    for name in PRECISIONS:
        sampler = named_model(args, name)
        if exact is None:
            examples = (drawn if args.config else held)(sampler, args.examples)
        found[name], tokens, velocities = replay(sampler, examples)
        exact = exact or (tokens, velocities)
        found[name]["velocity_error"] = float((velocities - exact[1]).norm() / exact[1].norm())
        found[name]["same_tokens"] = float((tokens == exact[0]).double().mean())
    chunks = sum(len(example.latents) for example in examples)
    print(table(found, f"{len(tokens):,} tokens, {chunks} chunks"))
    if args.out:
        args.out.write_text(json.dumps({"tokens": len(tokens), "chunks": chunks, **found}, indent=1) + "\n")


def table(found: dict[str, dict[str, Any]], what: str) -> str:
    """Markdown: one line a precision."""
    lines = [
        f"| {what} | MB of weights | bytes a cached token | velocity off fp32's | same likeliest token |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['weight_bytes'] / 1e6:,.1f} | {row['cache_bytes_per_token']:,} | "
            f"{row['velocity_error']:.2%} | {row['same_tokens']:.1%} |"
        )
    return "\n".join(lines)


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


if __name__ == "__main__":
    main_guard(main)  # type: ignore[arg-type]

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
from typing import TYPE_CHECKING, Any

from bench_sample import add_model  # the tool beside this one
from megatv.log import main_guard
from megatv.regular_file import require_place

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    """Replay, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model(parser)
    parser.add_argument("--examples", type=int, default=8, help="sequences, side by side")
    args = parser.parse_intermixed_args()
    if args.examples < 1:
        raise ValueError(f"--examples {args.examples}: must be at least 1")
    require_place(args.out)
    # these import torch, which takes seconds
    from megatv.model.precision import PRECISIONS
    from replay import drawn, held, replay
    from time_sample import named_model

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


if __name__ == "__main__":
    main_guard(main)  # type: ignore[arg-type]

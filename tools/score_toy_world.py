"""Score a toy-world checkpoint: do its words make sense, and do its pictures do what the words say?

    python tools/score_toy_world.py --checkpoint runs/toy_world --out scores.json

Fresh episodes of the world, which no training saw, give the starts: one frame each, and the meta-prompt. The
model says all words, those of t = 0 as well (TV2TV figure 3). Every start is continued once left alone, and
once for each of four actions at two times (section 3.3: 0.8125 s and 2.8125 s, chunks 4 and 12) with the same
seed and the action in place of the model's own words for one chunk. The world's own reader judges the
pictures (`megatv.eval`). Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from megatv.checkpoint.trust import Trust
from megatv.log import main_guard
from megatv.regular_file import require_place, write_file


def main() -> None:
    """Sample, score, print, write."""
    parser = scoring_parser(__doc__)
    parser.add_argument("--steps", type=int, help="Euler steps a chunk (default: sample.steps of the config)")
    args = parser.parse_args()
    check_scoring(args)
    # these import torch, which takes seconds
    from megatv.eval.toy_checkpoint import score, table
    from megatv.sample.sampler import Sampler, some_device

    device = args.device or some_device()
    sampler = Sampler.from_checkpoint(args.checkpoint, device, trust=Trust.given(args))
    settings = sampler.config.sample
    if args.steps is not None:
        settings = dataclasses.replace(settings, steps=args.steps)
    begun = time.perf_counter()
    scores = score(sampler, args.starts, args.batch, args.seed, settings)
    record = {
        "checkpoint": args.checkpoint,
        "step": sampler.step,
        "mode": sampler.config.sequence.mode,
        "starts": args.starts,
        "seed": args.seed,
        "settings": dataclasses.asdict(settings),
        "seconds": time.perf_counter() - begun,
        **scores,
    }
    print(table(record))
    if args.out:
        write_file(args.out, json.dumps(record, indent=1) + "\n")


def scoring_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of whatever scores checkpoints of the toy world."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint directory, or a run")
    parser.add_argument("--out", type=Path, help="write all scores here as JSON")
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="videos sampled at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling; the starts are always the same")
    parser.add_argument("--device", help="default: a GPU, or the CPU where there is none")
    Trust.add_options(parser)
    return parser


def check_scoring(args: argparse.Namespace) -> None:
    """Refuse (ValueError) numbers and a place that would fail after the work."""
    for key in ("starts", "batch"):
        if getattr(args, key) < 1:
            raise ValueError(f"--{key} {getattr(args, key)}: must be at least 1")
    require_place(args.out)


if __name__ == "__main__":
    main_guard(main)

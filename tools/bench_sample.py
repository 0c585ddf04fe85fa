"""Sampling measured: text tokens, chunk passes, the codec and a whole video, beside the floor of the device.

    python tools/bench_sample.py --config configs/toy_world.yaml "codec={kind: dct}"   # random weights
    python tools/bench_sample.py --checkpoint runs/toy_world                          # a trained model
    python tools/bench_sample.py --config configs/8b_sports.yaml "codec={kind: dct}" model.init_text=null

Passes are timed against a nearly full cache, batch 1, captured as CUDA graphs where there is a GPU, in a
precision of megatv.sample. Their floor is what the device would take if it did nothing but read every weight
and cached key once, in the bytes that it takes, at the rate of a copy, or nothing but the products, at the
rate of a large one: the slower of the two. The uncached peer brings everything before the new token or chunk
through the model again, as a sampler without a cache must. The whole video is made by `Stream`: words, solver
and codec.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatv.checkpoint.trust import Trust
from megatv.choices import PRECISION_CHOICES
from megatv.log import main_guard


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model(parser)
    parser.add_argument("--prompt", default="", help="of the video")
    parser.add_argument("--steps", type=int, help="solver steps a chunk (default: sample.steps)")
    parser.add_argument(
        "--precision", choices=PRECISION_CHOICES, default="auto", help="auto: bf16 on a GPU, else fp32"
    )
    args = parser.parse_intermixed_args()
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps {args.steps}: must be at least 1")
    from time_sample import named_model, passes, video  # imports torch, which takes seconds

    sampler = named_model(args, args.precision)
    steps = args.steps or sampler.config.sample.steps
    figures = {
        **passes(sampler.model, sampler.config, sampler.precision),
        "video": video(sampler, args.prompt, steps),
    }
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that name a trained model or a random one, its device, and a file for the figures."""
    parser.add_argument("--checkpoint", help="a checkpoint directory, or a run")
    parser.add_argument("--config", help="YAML of a model to be measured with random weights")
    parser.add_argument("--device", help="default: a GPU, or the CPU where there is none")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of --config")
    Trust.add_options(parser)


if __name__ == "__main__":
    main_guard(main)  # type: ignore[arg-type]

"""Train the `learned` codec on the toy world or on a folder of videos, and write it as one safetensors file.

    python tools/train_codec.py --toy EPISODES --out codec.safetensors
    python tools/train_codec.py --videos DIR [--size 320x192] --out codec.safetensors

The loss is the mean squared error of pixels, through latents with Gaussian noise: what a model samples is
never exactly the latent of a true picture, and a decoder that saw noise shows the nearest true picture all
the same. Videos are cut into groups of 49 frames at 16 fps and learned from in crops. Prints the PSNR on
held-out groups.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from megatv.config import SPATIAL_FACTOR
from megatv.log import main_guard, say


def size(text: str) -> tuple[int, int]:
    """(width, height) of `320x192`; both multiples of 8."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or any(int(n) % SPATIAL_FACTOR or int(n) == 0 for n in match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r}: write WIDTHxHEIGHT, multiples of {SPATIAL_FACTOR}")
    return int(match[1]), int(match[2])


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--toy", type=count, metavar="EPISODES", help="learn from so many toy-world episodes")
    source.add_argument("--videos", type=Path, metavar="DIR", help="learn from the videos in this folder")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--size", type=size, default=(320, 192), help="of --videos, in pixels (320x192)")
    parser.add_argument("--width", type=count, default=192, help="channels inside the network (192)")
    parser.add_argument("--steps", type=count, default=3200, help="optimizer steps (3200)")
    parser.add_argument("--batch", type=count, default=64, help="chunks of one step (64)")
    parser.add_argument("--lr", type=float, default=3e-3, help="largest learning rate (3e-3)")
    parser.add_argument("--noise", type=float, default=0.1, help="noise on unit latents (0.1)")
    parser.add_argument("--threads", type=count, help="CPU threads (OMP_NUM_THREADS, or 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    # these import torch, which takes seconds
    from megatv.model.codec.learned import MAX_WIDTH, LearnedCodec
    from megatv.model.codec.training import fit, load_chunks, toy_groups, video_groups

    import torch

    if options.width > MAX_WIDTH:
        raise ValueError(f"--width {options.width}: a codec has at most {MAX_WIDTH} channels")
    if options.threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(options.threads or 2)
    groups = toy_groups(options.toy) if options.toy else video_groups(options.videos, *options.size)
    chunks, held_out = load_chunks(groups, options.toy, options.seed)
    say(f"codec: {len(chunks)} chunks to learn from, {len(held_out)} held out")
    network = fit(chunks, held_out, options)
    LearnedCodec(network).save(options.out)
    say(f"{options.out}: {sum(p.numel() for p in network.parameters()):,} parameters")


if __name__ == "__main__":
    main_guard(main)

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
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatv.config import FPS, GROUP_FRAMES, SPATIAL_FACTOR
from megatv.data.toy_world import simulate
from megatv.data.video import iterate_video
from megatv.log import main_guard, progress, say
from megatv.model.codec.learned import MAX_WIDTH, ChunkAutoencoder, LearnedCodec, video_to_chunks

import numpy as np
import torch
from torch import Tensor

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}
CROP = 64
CROPS_PER_CHUNK = 4
HELD_OUT = 25
"""One group of 49 frames in so many is held out, and at least one."""
REPORTS = 10


def toy_groups(episodes: int) -> Iterator[np.ndarray]:
    """Groups uint8 [49, 32, 32, 3], one an episode, of the seeds that are nobody's validation data."""
    return (simulate(seed).frames for seed in range(episodes))


def video_groups(folder: Path, width: int, height: int) -> Iterator[np.ndarray]:
    """Groups uint8 [49, height, width, 3] of a folder's videos; frames that fill no group are left out."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not files:
        raise ValueError(f"{folder}: no videos ({', '.join(sorted(VIDEO_SUFFIXES))}) in this folder")
    for file in files:
        group: list[np.ndarray] = []
        for frame in iterate_video(file, width=width, height=height):
            group.append(frame)
            if len(group) == GROUP_FRAMES:
                yield np.stack(group)
                group = []


def chunks_of(group: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Chunks uint8 [n, 12, h, w] of one group: small pictures whole, large ones as CROPS_PER_CHUNK crops."""
    video = torch.from_numpy(group).permute(3, 0, 1, 2)[None]
    chunks = video_to_chunks(video)[0]
    height, width = chunks.shape[2:]
    if height <= CROP and width <= CROP:
        return chunks.contiguous()
    crops = []
    for chunk in chunks:
        for _ in range(CROPS_PER_CHUNK):
            top, left = (int(rng.integers(max(size - CROP, 0) + 1)) for size in (height, width))
            crops.append(chunk[:, top : top + CROP, left : left + CROP])
    return torch.stack(crops)


def load_chunks(groups: Iterable[np.ndarray], total: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Chunks to learn from and held-out ones, uint8 [n, 12, h, w]. Raises ValueError below two groups."""
    rng = np.random.default_rng(seed)
    chunks = [chunks_of(group, rng) for group in progress(groups, total=total, desc="reading")]
    if len(chunks) < 2:
        raise ValueError(
            f"{len(chunks)} groups of {GROUP_FRAMES} frames at {FPS} fps to learn from; at least 2 are needed"
        )
    held_out = range(0, len(chunks), HELD_OUT)
    return (
        torch.cat([c for i, c in enumerate(chunks) if i not in held_out]),
        torch.cat([chunks[i] for i in held_out]),
    )


def fit(chunks: Tensor, held_out: Tensor, options: argparse.Namespace) -> ChunkAutoencoder:
    """Train a new network with AdamW and a one-cycle schedule; a function of the chunks and the options."""
    torch.manual_seed(options.seed)
    network = ChunkAutoencoder(options.width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.steps, pct_start=0.15, cycle_momentum=False
    )
    started = time.monotonic()
    for step in progress(range(1, options.steps + 1), total=options.steps, desc="codec"):
        batch = to_float(chunks[torch.randint(len(chunks), (options.batch,))])
        loss = (network(batch, options.noise) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % math.ceil(options.steps / REPORTS) == 0 or step == options.steps:
            seconds = time.monotonic() - started
            say(
                f"codec step {step}/{options.steps}: held-out PSNR {psnr(network, held_out):.2f} dB, "
                f"{seconds:.0f} s, {seconds / step * (options.steps - step):.0f} s left"
            )
    return network


@torch.no_grad()
def psnr(network: ChunkAutoencoder, chunks: Tensor) -> float:
    """PSNR in dB of reconstructed chunks, as the codec would show them."""
    network.eval()
    errors = [
        (network(to_float(part)).clamp(-1, 1) - to_float(part)).square().flatten(1).mean(1)
        for part in chunks.split(128)
    ]
    network.train()
    return float(10 * torch.log10(4 / torch.cat(errors).mean()))


def to_float(chunks: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return chunks.float() / 127.5 - 1


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

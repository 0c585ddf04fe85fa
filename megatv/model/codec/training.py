"""How the `learned` codec is trained: chunks of videos, a network, its PSNR; see `tools/train_codec.py`."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatv.config import FPS, GROUP_FRAMES
from megatv.data.toy_world import simulate
from megatv.data.video import iterate_video
from megatv.log import progress, say
from megatv.model.codec.learned import ChunkAutoencoder, video_to_chunks

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

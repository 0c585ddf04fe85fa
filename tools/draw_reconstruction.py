"""Draw an example beside what a model makes of each of its chunks from the true past.

    python tools/draw_reconstruction.py --checkpoint runs/own_videos --index 0 --out reconstruction.png

Every chunk is drawn from noise, given its words and the true chunks before it; the truth is what the codec
shows of the example. Prints the PSNR of the model's frames, and of frames that only repeat the last one seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatv.checkpoint.trust import Trust
from megatv.config import FPS
from megatv.log import main_guard, say

import numpy as np


def repeated(frames: np.ndarray, starts: list[int]) -> np.ndarray:
    """uint8 [F, H, W, 3]: in every chunk the last true frame before it; chunk 0 is given."""
    out = frames.copy()
    for start, end in zip(starts[1:], [*starts[2:], len(frames)], strict=True):
        out[start:end] = frames[start - 1]
    return out


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or one checkpoint")
    parser.add_argument("--index", type=int, default=0, help="the example's number in the shards")
    parser.add_argument("--steps", type=int, default=20, help="Euler steps")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    Trust.add_options(parser)
    args = parser.parse_args()
    # these import torch, which takes seconds
    from megatv.data.loader import check_shards
    from megatv.data.remote import open_shards
    from megatv.data.sequence import build_sequence, chunk_start_seconds, texts_by_chunk
    from megatv.eval.codec_quality import quality
    from megatv.eval.reconstruction import reconstruct
    from megatv.model.codec import clip_encoder
    from megatv.sample.render import Strip, contact_sheet
    from megatv.sample.request import ChunkWords
    from megatv.sample.sampler import Sampler

    import torch

    sampler = Sampler.from_checkpoint(args.checkpoint, trust=Trust.given(args))
    config = sampler.config
    if "data.train" in sampler.refused:
        raise ValueError(sampler.refused["data.train"])
    shards = open_shards(config.data.train, config.data, lambda: clip_encoder(sampler.codec))
    check_shards(shards, config)
    if not 0 <= args.index < len(shards):
        raise ValueError(f"--index {args.index}: {shards.path} holds examples 0 to {len(shards) - 1}")
    if args.steps < 1:
        raise ValueError(f"--steps {args.steps}: must be at least 1")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: give the name of a file in a folder that exists")
    example = shards[args.index]
    if example.valid_latents < 2:
        raise ValueError(f"--index {args.index}: has one chunk only, which has no past; name another example")
    sequence = build_sequence(example, sampler.tokenizer, config, seed=config.run.seed, epoch=0, train=False)
    drawn = reconstruct(sampler.model, sequence, config, steps=args.steps, seed=args.seed).cpu().numpy()

    def frames(latents: np.ndarray) -> np.ndarray:
        raw = torch.from_numpy(shards.stats.denormalize(latents))
        return sampler.codec.decode(raw[None])[0].cpu().numpy()

    truth, made = frames(example.latents[: len(drawn)]), frames(drawn)
    seconds = [chunk_start_seconds(i) for i in range(len(drawn))]
    starts = [round(start * FPS) for start in seconds]

    def psnr(shown: np.ndarray) -> float:
        """dB, without chunk 0, which has no past to repeat."""
        pair = (torch.from_numpy(video[None, starts[1] :]) for video in (truth, shown))
        return quality(*pair)["psnr"]

    words = tuple(
        ChunkWords(start, "\n".join(texts), "own")
        for start, texts in zip(seconds, texts_by_chunk(example), strict=False)
    )
    note = f"{psnr(made):.1f} dB; repeating the last true frame: {psnr(repeated(truth, starts)):.1f} dB"
    silent = tuple(ChunkWords(start, "", "own") for start in seconds)
    strips = [
        Strip("example", truth, words),
        Strip("each chunk by the model, from the true past", made, silent),
    ]
    title = f"{example.id}: {example.meta_caption}"
    contact_sheet(strips, title, f"step {sampler.step}, {args.steps} Euler steps, {note}").save(args.out)
    say(f"{args.out}: example {args.index} ({example.id}), {len(drawn)} chunks, {note}")


if __name__ == "__main__":
    main_guard(main)

"""Clips through the codec into a shard directory: the work of `tools/make_shards.py`, which describes it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from megatv.config import FPS, Config, config_to_dict
from megatv.data import csgo
from megatv.data.budget import TextBudget
from megatv.data.clips import (
    Clip,
    checked_videos,
    clip_frames,
    csgo_clips,
    naming,
    stored_crops,
    toy_clips,
    until_damage,
    video_clips,
)
from megatv.data.crop import (
    CLIP_SECONDS,
    consecutive_windows,
    longest_clip,
    wordiest_crop,
)
from megatv.data.format import codec_fingerprint, stores_whole_clips
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats, StatsAccumulator
from megatv.data.video import encode_video, whole_latents
from megatv.log import progress, say
from megatv.model.codec import Codec, clip_encoder, latents_to_frames, load_codec
from megatv.untrusted import printable

import numpy as np
import torch

CLIP_CRF = 12
"""H.264 quality of stored clips: its error in latents is within a tenth of that of 4:2:0 colour alone."""
KEY_FRAME_EVERY = 2 * FPS
"""Most frames between two of a whole clip where decoding can start, so that a crop is decoded alone."""
BATCH_VALUES = 1 << 22
"""Pixel values that go through the codec in one call."""
SUMMARY_EXAMPLES = {"latents": 256, "clips": 8}


def make_shards(args: argparse.Namespace, config: Config) -> int:
    """Make one shard directory, as the options of the tool say; 2 when something had to be left out."""
    whole = stores_whole_clips(config.data.crop, args.store, args.crops)
    info = DatasetInfo(
        config.video.width,
        config.video.height,
        config.video.groups,
        config_to_dict(config.codec),
        stores=args.store,
        codec_fingerprint=codec_fingerprint(config.codec),
        longest_clip=longest_clip(clip_frames(config), config.data.crop) if whole else None,
        crops=args.crops,
    )
    stats = _stats_of(args.stats, info) if args.stats else None
    budget = TextBudget(config)
    damaged: list[str] = []
    if args.toy:
        total, clips = args.toy, toy_clips(args.toy, args.seed, args.split, config)
    elif args.csgo:
        episodes = csgo.split_episodes(csgo.find_episodes(args.csgo), args.split, args.held_out)
        length, lag = clip_frames(config), args.action_lag
        checks = progress(episodes, desc="checking episodes")
        total = sum(csgo.check_episode(path, length=length, action_lag=lag) for path in checks)
        clips = until_damage((csgo_clips(path, lag, config) for path in episodes), damaged)
    else:
        videos = checked_videos(args.videos, args.captions, budget, damaged)
        length = clip_frames(config) if config.data.crop == "none" else CLIP_SECONDS * FPS
        total = sum(math.ceil(seconds * FPS / length) for _, seconds in videos)
        clips = until_damage((video_clips(args.videos, *video, config) for video in videos), damaged)
        if args.crops:
            total *= args.crops
            clips = (crop for clip in clips for crop in stored_crops(clip, args.crops, config))
    codec = load_codec(config.codec, args.device, trust=args.trust_codec)
    with ShardWriter(args.out, info) as writer:
        bar = progress(clips, total=total, desc="clips")
        found, frames = encode(bar, writer, budget, config, codec)
        for fault in damaged:
            print(f"left out from there on: {printable(fault)}", file=sys.stderr)
        if damaged and not frames:
            raise ValueError(f"{args.out}: no clip could be read, so there is nothing to train on")
        writer.finish(stats or found.finish())
    summarize(args.out, frames, codec)
    if budget.lost:
        print(f"warning: {printable(budget.report())}", file=sys.stderr)
    else:
        say(budget.report())
    return 2 if damaged else 0


def encode(
    clips: Iterable[Clip], writer: ShardWriter, budget: TextBudget, config: Config, codec: Codec
) -> tuple[StatsAccumulator, int]:
    """Code and write the clips, in batches; the statistics of their valid latents and the frames of these."""
    stats, frames = StatsAccumulator(), 0
    clips, length, whole = iter(clips), clip_frames(config), writer.info.longest_clip is not None
    values = length * config.video.width * config.video.height * 3
    while batch := list(islice(clips, max(1, BATCH_VALUES // values))):
        for clip in batch:
            with naming(clip.where):
                count = len(clip.frames)
                budget.count(wordiest_crop(clip.words, count, length) if whole else clip.words)
        pieces = [
            _padded(clip.frames[window.start : window.stop], length)
            for clip in batch
            for window in consecutive_windows(len(clip.frames), length)
        ]
        latents = iter(codec.encode(torch.from_numpy(np.stack(pieces))).cpu().numpy())
        for clip in batch:
            words = clip.words
            with naming(clip.where):
                for window in consecutive_windows(len(clip.frames), length):
                    coded, valid = next(latents), whole_latents(len(window))
                    stats.add(coded[:valid])
                    frames += latents_to_frames(valid)
                writer.write(
                    words.id,
                    coded if writer.info.stores == "latents" else _as_video(clip.frames, length, whole),
                    captions=words.captions,
                    meta_caption=words.meta_caption,
                    detailed_caption=words.detailed_caption,
                    valid_latents=words.valid_latents,
                    ends_clip=words.ends_clip,
                    source=clip.source,
                    quality=clip.quality,
                    frames=len(clip.frames) if whole else None,
                )
    return stats, frames


def _as_video(frames: np.ndarray, length: int, whole: bool) -> bytes:
    """A clip as H.264: a whole one as it is, with key frames to start a crop at, or padded to an example."""
    if whole:
        return encode_video(frames, crf=CLIP_CRF, key_frame_every=KEY_FRAME_EVERY)
    return encode_video(_padded(frames, length), crf=CLIP_CRF)


def summarize(path: Path, frames: int, codec: Codec) -> None:
    """Print what the directory holds, read back from it; `frames` are those that are not padding."""
    shards = Shards(path, lambda: clip_encoder(codec))
    size = sum(file.stat().st_size for file in path.iterdir())
    examples = [shards[i] for i in range(min(len(shards), SUMMARY_EXAMPLES[shards.info.stores]))]
    values = np.concatenate([e.latents[: e.valid_latents].ravel() for e in examples], dtype=np.float64)
    say(
        f"{path}: {len(shards)} examples of {shards.info.latent_shape[0]} latents, "
        f"{frames / FPS:.1f} s of video, {size / 1e6:.1f} MB; normalised latents of the first "
        f"{len(examples)}: mean {values.mean():.3f}, std {values.std():.3f}"
    )


def _padded(frames: np.ndarray, length: int) -> np.ndarray:
    """`length` frames: those given, and the last one again as often as needed."""
    return np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])


def _stats_of(path: Path, info: DatasetInfo) -> LatentStats:
    """Latent statistics of other shards; ValueError when those came from another codec."""
    other = DatasetInfo.load(path / "dataset.json")
    if other.codec_fingerprint is None or info.codec_fingerprint is None:
        same = other.codec == info.codec
    else:
        same = (other.codec["kind"], other.codec_fingerprint) == (info.codec["kind"], info.codec_fingerprint)
    if not same:
        raise ValueError(
            f"{path}: --stats was made with codec {other.codec} (weights {other.codec_fingerprint}), the "
            f"config says {info.codec} ({info.codec_fingerprint}): statistics hold for one codec only"
        )
    return LatentStats.load(path / "latent_stats.json")

"""Make a shard directory from videos with captions, from recordings of CS:GO, or from the toy world.

    python tools/make_shards.py --config YAML --out DIR --videos DIR --captions FILE.jsonl
    python tools/make_shards.py --config YAML --out DIR --csgo DIR [--split train|val] [--held-out FILE]
    python tools/make_shards.py --config YAML --out DIR --toy EPISODES [--seed S] [--split train|val]

`tools/shards.py` verifies, shows, measures and splits what this makes; `megatv.data.format` describes it.
Frames go through the config's codec at the config's size; `megatv.data.captions` describes the captions file.
`--stats DIR` takes the latent statistics of other shards, as held-out shards must. `--store clips` keeps
each clip as H.264 instead of its latents, and the codec runs while training.

With `data.crop: starts` (the paper's) or `frames`, examples of videos are cropped at random
(`megatv.data.crop`). `--store clips` then keeps whole clips, which the loader crops anew in every epoch: a
line of the captions file is one, or several of about 16 s, which overlap with `starts`, where it is longer.
`--store latents --crops K` keeps K crops of each, those that the loader would draw in epochs 0 to K - 1, at
K times the disk of one example.

Otherwise videos are cut into consecutive clips of video.groups x 49 frames at 16 fps. The last, shorter one
is padded with its last frame, which `valid_latents` records; it is dropped when it holds less than one group,
unless it is all there is. A clip ends its source (EOS may follow) when the video ends with it, but for up to
three frames that do not fill a latent. Games go on: episodes of CS:GO, cut like videos, and of the toy world
end nothing, and are never cropped; nor does a part of a video end anything, which the part of another line
follows.

A video or an episode that turns out to be damaged is used up to there and named at the end; then the shards
of the others are made and the exit code is 2.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from megatv.config import FPS, Config, config_to_dict, load_config
from megatv.data import csgo
from megatv.data.budget import TextBudget
from megatv.data.clips import (
    SPLITS,
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
    MAX_CROPS,
    consecutive_windows,
    longest_clip,
    stores_whole_clips,
    wordiest_crop,
)
from megatv.data.format import STORES, codec_fingerprint
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats, StatsAccumulator
from megatv.data.video import encode_video, whole_latents
from megatv.log import main_guard, progress, say
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


def main() -> int:
    """Make one shard directory, as the command line says; 2 when something had to be left out."""
    args = _arguments()
    config = load_config(args.config, args.overrides)
    if config.data.crop != "none" and not args.videos:
        raise ValueError(
            f"data.crop {config.data.crop} is for --videos, and games are cut in a row: set it to none"
        )
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", type=Path, metavar="DIR", help="folder of the videos; needs --captions")
    source.add_argument(
        "--csgo", type=Path, nargs="+", metavar="DIR", help=".hdf5 episodes or folders of them"
    )
    source.add_argument("--toy", type=int, metavar="EPISODES", help="episodes of the toy world")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="captions of the videos (JSONL)")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="YAML", help="config of the run that will read them"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shard directory to make")
    parser.add_argument("--store", choices=STORES, default="latents", help="what to keep of a clip (latents)")
    parser.add_argument(
        "--crops", type=int, metavar="K", help="random crops of every clip, for latents with data.crop"
    )
    parser.add_argument("--stats", type=Path, metavar="DIR", help="normalise as these shards do")
    parser.add_argument("--seed", type=int, default=0, help="of the toy world (0)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of CS:GO or the toy world (train)")
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="PATH",
        help="a folder of CS:GO's val episodes, or a list of their names (by hash, one in 11)",
    )
    parser.add_argument(
        "--action-lag", type=int, default=0, metavar="N", help="CS:GO's frame f shows action f - N (0)"
    )
    parser.add_argument("--device", default="cpu", help="where the codec runs (cpu)")
    parser.add_argument(
        "--trust-codec", action="store_true", help="load a TorchScript codec, which can run any code"
    )
    args = parser.parse_args()
    if args.videos and not args.captions:
        parser.error("--videos needs --captions")
    for flag, given in (("--held-out", args.held_out), ("--action-lag", args.action_lag)):
        if given and not args.csgo:
            parser.error(f"{flag} needs --csgo")
    if args.crops is not None and not 1 <= args.crops <= MAX_CROPS:
        parser.error(f"--crops {args.crops}: must be 1 to {MAX_CROPS}")
    if args.toy is not None and args.toy < 1:
        parser.error(f"--toy {args.toy}: at least 1 episode is needed")
    return args


if __name__ == "__main__":
    main_guard(main)

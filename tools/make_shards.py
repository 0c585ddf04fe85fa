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
end nothing, and are never cropped.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatv.config import FPS, GROUP_FRAMES, Config, config_to_dict, load_config
from megatv.data import csgo
from megatv.data.budget import TextBudget
from megatv.data.captions import CaptionedVideo, check_duration, clip_captions, read_captions
from megatv.data.crop import (
    CLIP_SECONDS,
    MAX_CROPS,
    consecutive_windows,
    crop_words,
    cut_clips,
    draw_window,
    longest_clip,
    overlap_of,
    stores_whole_clips,
    wordiest_crop,
)
from megatv.data.format import STORES, codec_fingerprint
from megatv.data.noise import Draws
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats, StatsAccumulator
from megatv.data.toy_pictures import SIZE
from megatv.data.toy_world import META_PROMPT, simulate
from megatv.data.video import cut, encode_video, iterate_video, probe, whole_latents
from megatv.log import main_guard, progress, say
from megatv.model.codec import Codec, clip_encoder, latents_to_frames, load_codec
from megatv.types import Caption, Example
from megatv.untrusted import inside, printable

CLIP_CRF = 12
"""H.264 quality of stored clips: its error in latents is within a tenth of that of 4:2:0 colour alone."""
KEY_FRAME_EVERY = 2 * FPS
"""Most frames between two of a whole clip where decoding can start, so that a crop is decoded alone."""
BATCH_VALUES = 1 << 22
"""Pixel values that go through the codec in one call."""
SUMMARY_EXAMPLES = {"latents": 256, "clips": 8}
SPLITS = {"train": 0, "val": 1}
EPISODES_PER_SEED = 1 << 32


@dataclass(frozen=True)
class Clip:
    """One example before the codec: its words (an Example without latents) and frames [F, H, W, 3].

    There are at most an example's frames, but for a clip that the loader crops. where names the clip's
    origin in messages; source and quality are kept in the shards.
    """

    where: str
    words: Example
    frames: np.ndarray
    source: dict[str, Any]
    quality: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Make one shard directory, as the command line says."""
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
    if args.toy:
        total, clips = args.toy, toy_clips(args.toy, args.seed, args.split, config)
    elif args.csgo:
        episodes = csgo.split_episodes(csgo.find_episodes(args.csgo), args.split, args.held_out)
        length, lag = clip_frames(config), args.action_lag
        checks = progress(episodes, desc="checking episodes")
        total = sum(csgo.check_episode(path, length=length, action_lag=lag) for path in checks)
        clips = (clip for path in episodes for clip in csgo_clips(path, lag, config))
    else:
        videos = checked_videos(args.videos, args.captions, budget)
        length = clip_frames(config) if config.data.crop == "none" else CLIP_SECONDS * FPS
        total = sum(math.ceil(seconds * FPS / length) for _, seconds in videos)
        clips = (clip for video in videos for clip in video_clips(args.videos, *video, config))
        if args.crops:
            total *= args.crops
            clips = (crop for clip in clips for crop in stored_crops(clip, args.crops, config))
    codec = load_codec(config.codec, args.device, trust=args.trust_codec)
    with ShardWriter(args.out, info) as writer:
        bar = progress(clips, total=total, desc="clips")
        found, frames = encode(bar, writer, budget, config, codec)
        writer.finish(stats or found.finish())
    summarize(args.out, frames, codec)
    if budget.lost:
        print(f"warning: {printable(budget.report())}", file=sys.stderr)
    else:
        say(budget.report())


def toy_clips(episodes: int, seed: int, split: str, config: Config) -> Iterator[Clip]:
    """Episodes of the toy world; the two splits of all seeds share none."""
    if (config.video.width, config.video.height) != (SIZE, SIZE):
        raise ValueError(
            f"the toy world's pictures are {SIZE}x{SIZE}: set video.width and video.height to {SIZE}"
        )
    first = (2 * seed + SPLITS[split]) * EPISODES_PER_SEED
    for index in range(episodes):
        episode = simulate(first + index, config.video.groups)
        name = f"toy-{split}-{seed}-{index:06d}"
        words = _words(name, episode.captions(), META_PROMPT, valid_latents=config.latents)
        yield Clip(name, words, episode.frames, {"video": name, "toy_world_seed": first + index})


def csgo_clips(path: Path, action_lag: int, config: Config) -> Iterator[Clip]:
    """The clips of one episode of CS:GO, in order of time."""
    length = clip_frames(config)
    found = csgo.episode_clips(
        path, width=config.video.width, height=config.video.height, length=length, action_lag=action_lag
    )
    for clip in found:
        name = f"{path.stem}@{clip.first_frame / FPS:.4f}"
        words = _words(name, clip.captions, csgo.META_PROMPT, valid_latents=whole_latents(len(clip.frames)))
        source = {"video": path.name, "start": clip.first_frame / FPS, "frames": len(clip.frames)}
        yield Clip(str(path), words, clip.frames, source | {"action_lag": action_lag})


def checked_videos(folder: Path, captions: Path, budget: TextBudget) -> list[tuple[CaptionedVideo, float]]:
    """Every described video and how many seconds of it are used, after all checks that need no decoding."""
    videos = []
    for video in read_captions(captions):
        with _naming(video.where):
            file = inside(folder, video.video)
            if not file.is_file():
                raise ValueError(
                    f"video {video.video!r} is not in {folder}; copy it there or correct the name"
                )
            seconds = probe(file).seconds
            budget.check(_words(video.video, (), video.meta_caption, video.detailed_caption))
        check_duration(video, seconds)
        videos.append((video, seconds - video.start_seconds))
    return videos


def video_clips(folder: Path, video: CaptionedVideo, seconds: float, config: Config) -> Iterator[Clip]:
    """The clips of one line of the captions file, in order of time: examples, or longer ones to crop."""
    length, crop, first = clip_frames(config), config.data.crop, 0
    frames = iterate_video(
        inside(folder, video.video),
        width=config.video.width,
        height=config.video.height,
        start_seconds=video.start_seconds,
    )
    pieces = cut(frames, length)
    if crop != "none":
        pieces = cut_clips(frames, round(seconds * FPS), length, crop)
    with _naming(video.where):
        for piece, is_last in pieces:
            start = first / FPS
            words = _words(
                f"{video.video}@{video.start_seconds + start:.4f}",
                clip_captions(video.captions, start, max(len(piece), length) / FPS),
                video.meta_caption,
                video.detailed_caption,
                valid_latents=whole_latents(min(len(piece), length)),
                ends_clip=is_last,
            )
            source = {"video": video.video, "start": video.start_seconds + start, "frames": len(piece)}
            yield Clip(video.where, words, piece, source | video.source, video.quality)
            first += len(piece) - overlap_of(length, crop)


def stored_crops(clip: Clip, count: int, config: Config) -> Iterator[Clip]:
    """The crops of a clip in the first `count` epochs of a run with this config; equal ones come once."""
    length, frames = clip_frames(config), len(clip.frames)
    draws = (Draws(config.run.seed, epoch, clip.words.id) for epoch in range(count))
    windows = dict.fromkeys(draw_window(frames, length, config.data.crop, draw) for draw in draws)
    for index, window in enumerate(windows):
        words = replace(crop_words(clip.words, frames, window), id=f"{clip.words.id}#{index}")
        place = {"start": clip.source["start"] + window.start / FPS, "frames": len(window)}
        shown = clip.frames[window.start : window.stop]
        yield replace(clip, words=words, frames=shown, source=clip.source | place)


def encode(
    clips: Iterable[Clip], writer: ShardWriter, budget: TextBudget, config: Config, codec: Codec
) -> tuple[StatsAccumulator, int]:
    """Code and write the clips, in batches; the statistics of their valid latents and the frames of these."""
    stats, frames = StatsAccumulator(), 0
    clips, length, whole = iter(clips), clip_frames(config), writer.info.longest_clip is not None
    values = length * config.video.width * config.video.height * 3
    while batch := list(islice(clips, max(1, BATCH_VALUES // values))):
        for clip in batch:
            with _naming(clip.where):
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
            with _naming(clip.where):
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


def clip_frames(config: Config) -> int:
    """Frames of one example."""
    return config.video.groups * GROUP_FRAMES


def _padded(frames: np.ndarray, length: int) -> np.ndarray:
    """`length` frames: those given, and the last one again as often as needed."""
    return np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])


def _words(
    id: str,
    captions: tuple[Caption, ...],
    meta_caption: str,
    detailed_caption: str = "",
    *,
    valid_latents: int = 1,
    ends_clip: bool = False,
) -> Example:
    """An Example whose latents are still to be coded."""
    return Example(id, np.empty(0), captions, meta_caption, detailed_caption, valid_latents, ends_clip)


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


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say in errors which line or episode they belong to."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


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
        "--held-out", type=Path, metavar="FILE", help="names of CS:GO's val episodes (by hash, one in 11)"
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

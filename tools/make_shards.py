"""Make a shard directory from videos with captions, from recordings of CS:GO, or from the toy world.

    python tools/make_shards.py --config YAML --out DIR --videos DIR --captions FILE.jsonl
    python tools/make_shards.py --config YAML --out DIR --csgo DIR [--split train|val] [--held-out FILE]
    python tools/make_shards.py --config YAML --out DIR --toy EPISODES [--seed S] [--split train|val]

`tools/shards.py` verifies, shows, measures and splits what this makes; `megatv.data.format` describes it.
Frames go through the config's codec at the config's size; `megatv.data.captions` describes the captions file.
`--stats DIR` takes the latent statistics of other shards, as held-out shards must. `--store clips` keeps
each clip as H.264 instead of its latents, and the codec runs while training.

Videos are cut into consecutive clips of video.groups x 49 frames at 16 fps. The last, shorter clip is padded
with its last frame, which `valid_latents` records; it is dropped when it holds less than one group, unless it
is all there is. A clip ends its source (EOS may follow) when the video ends with it, but for up to three
frames that do not fill a latent. Games go on: episodes of CS:GO, cut like videos, and of the toy world end
nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from megatv.config import FPS, GROUP_FRAMES, Config, config_to_dict, load_config
from megatv.data import csgo
from megatv.data.budget import TextBudget
from megatv.data.captions import CaptionedVideo, check_duration, clip_captions, read_captions
from megatv.data.format import STORES, codec_fingerprint
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats, StatsAccumulator
from megatv.data.toy_pictures import SIZE
from megatv.data.toy_world import META_PROMPT, simulate
from megatv.data.video import cut, encode_video, iterate_video, probe, whole_latents
from megatv.log import main_guard, progress, say
from megatv.model.codec import Codec, clip_encoder, latents_to_frames, load_codec
from megatv.types import Caption, Example
from megatv.untrusted import inside, printable

import numpy as np
import torch

CLIP_CRF = 12
"""H.264 quality of stored clips: its error in latents is within a tenth of that of 4:2:0 colour alone."""
BATCH_VALUES = 1 << 22
"""Pixel values that go through the codec in one call."""
SUMMARY_EXAMPLES = {"latents": 256, "clips": 8}
SPLITS = {"train": 0, "val": 1}
EPISODES_PER_SEED = 1 << 32


@dataclass(frozen=True)
class Clip:
    """One example before the codec: its words (an Example without latents) and padded frames [F, H, W, 3].

    where names the clip's origin in messages; source and quality are kept in the shards.
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
    info = DatasetInfo(
        config.video.width,
        config.video.height,
        config.video.groups,
        config_to_dict(config.codec),
        stores=args.store,
        codec_fingerprint=codec_fingerprint(config.codec),
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
        total = sum(math.ceil(seconds * FPS / clip_frames(config)) for _, seconds in videos)
        clips = (clip for video, _ in videos for clip in video_clips(args.videos, video, config))
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
        yield Clip(str(path), words, _padded(clip.frames, length), source | {"action_lag": action_lag})


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


def video_clips(folder: Path, video: CaptionedVideo, config: Config) -> Iterator[Clip]:
    """The clips of one line of the captions file, in order of time."""
    length = clip_frames(config)
    frames = iterate_video(
        inside(folder, video.video),
        width=config.video.width,
        height=config.video.height,
        start_seconds=video.start_seconds,
    )
    with _naming(video.where):
        for index, (piece, is_last) in enumerate(cut(frames, length)):
            start = index * length / FPS
            words = _words(
                f"{video.video}@{video.start_seconds + start:.4f}",
                clip_captions(video.captions, start, length / FPS),
                video.meta_caption,
                video.detailed_caption,
                valid_latents=whole_latents(len(piece)),
                ends_clip=is_last,
            )
            source = {"video": video.video, "start": video.start_seconds + start, "frames": len(piece)}
            source |= video.source
            yield Clip(video.where, words, _padded(piece, length), source, video.quality)


def encode(
    clips: Iterable[Clip], writer: ShardWriter, budget: TextBudget, config: Config, codec: Codec
) -> tuple[StatsAccumulator, int]:
    """Code and write the clips, in batches; the statistics of their valid latents and the frames of these."""
    stats, frames = StatsAccumulator(), 0
    clips = iter(clips)
    values = clip_frames(config) * config.video.width * config.video.height * 3
    while batch := list(islice(clips, max(1, BATCH_VALUES // values))):
        for clip in batch:
            with _naming(clip.where):
                budget.count(clip.words)
        latents = codec.encode(torch.from_numpy(np.stack([clip.frames for clip in batch]))).cpu().numpy()
        for clip, coded in zip(batch, latents, strict=True):
            words = clip.words
            with _naming(clip.where):
                stats.add(coded[: words.valid_latents])
                frames += latents_to_frames(words.valid_latents)
                writer.write(
                    words.id,
                    coded if writer.info.stores == "latents" else encode_video(clip.frames, crf=CLIP_CRF),
                    captions=words.captions,
                    meta_caption=words.meta_caption,
                    detailed_caption=words.detailed_caption,
                    valid_latents=words.valid_latents,
                    ends_clip=words.ends_clip,
                    source=clip.source,
                    quality=clip.quality,
                )
    return stats, frames


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
    if args.toy is not None and args.toy < 1:
        parser.error(f"--toy {args.toy}: at least 1 episode is needed")
    return args


if __name__ == "__main__":
    main_guard(main)

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
from pathlib import Path

from megatv.choices import SPLITS
from megatv.config import load_config
from megatv.data.format import MAX_CROPS, STORES, stores_whole_clips
from megatv.log import main_guard


def main() -> int:
    """Make one shard directory, as the command line says; 2 when something had to be left out."""
    args = _arguments()
    config = load_config(args.config, args.overrides)
    if config.data.crop != "none" and not args.videos:
        raise ValueError(
            f"data.crop {config.data.crop} is for --videos, and games are cut in a row: set it to none"
        )
    stores_whole_clips(config.data.crop, args.store, args.crops)
    from encode_shards import make_shards  # the tool beside this one; imports torch, which takes seconds

    return make_shards(args, config)


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

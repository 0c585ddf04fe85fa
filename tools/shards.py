"""Check, show, measure or split a directory of shards.

    python tools/shards.py verify DIR
    python tools/shards.py inspect DIR --config YAML [--index I] [--out sheet.png]
    python tools/shards.py stats DIR [--out stats.png] [--config YAML]
    python tools/shards.py stats DIR --recompute [--config YAML] | --like CHECKPOINT
    python tools/shards.py split DIR --out DIR [--share 0.05] [--seed S] [--by video]

verify    every shard against its hash, then every example; clips are decoded. Exit code 2 when anything
          differs
inspect   one example: a contact sheet, the transcript with its token counts, the training sequence as text;
          of a clip to crop (`data.crop`) what it is in epoch 0
stats     histograms of durations, captions and quality scores, and the latent statistics, as one PNG; with
          `--config`, how many examples have more words than it gives rows, and the chunks that they lose;
          `--recompute` computes the latent statistics anew and stores them (clips: with the config's codec);
          `--like` stores those of a checkpoint, whose run goes on with no others
split     into OUT/train and OUT/val, all clips of one source video on one side; both keep DIR's latent
          statistics, since held-out losses mean something only when both are normalised alike

A codec is loaded only where `--config` names it, never because dataset.json does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatv.config import load_config
from megatv.log import main_guard


def main() -> int:
    """Run the verb of the command line; 2 when `verify` found damage."""
    args = _arguments()
    named = args.verb in ("inspect", "stats") and args.config
    config = load_config(args.config, args.overrides) if named else None
    import examine_shards as shards  # the tool beside this one; imports torch, which takes seconds

    if args.verb == "verify":
        return shards.verify_all(args.directory)
    if args.verb == "split":
        shards.split_in_two(args.directory, args.out, args.share, args.seed, args.by)
    elif args.verb == "inspect":
        assert config is not None
        shards.inspect(args.directory, config, args.index, args.out, args.trust_codec)
    elif args.like:
        shards.restore(args.directory, args.like)
    elif args.recompute:
        shards.recompute(args.directory, config, args.device, args.trust_codec)
    else:
        shards.show_stats(args.directory, config, args.out)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verify|inspect|stats|split")
    parsers = {name: verbs.add_parser(name) for name in ("verify", "inspect", "stats", "split")}
    for verb in parsers.values():
        verb.add_argument("directory", type=Path, metavar="DIR", help="the shards")
    for name in ("inspect", "stats"):
        parsers[name].add_argument("--config", type=Path, required=name == "inspect", metavar="YAML")
        parsers[name].add_argument("--out", type=Path, default=Path(f"{name}.png"), help="the picture")
        parsers[name].add_argument(
            "--trust-codec", action="store_true", help="load a TorchScript codec, which can run any code"
        )
        parsers[name].add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parsers["inspect"].add_argument("--index", type=int, default=0, help="of the example (0)")
    change = parsers["stats"].add_mutually_exclusive_group()
    change.add_argument("--recompute", action="store_true", help="the latents' statistics, and store them")
    change.add_argument("--like", type=Path, metavar="CHECKPOINT", help="store this checkpoint's statistics")
    parsers["stats"].add_argument("--device", default="cpu", help="where the codec runs (cpu)")
    parsers["split"].add_argument("--out", type=Path, required=True, help="gets folders train and val")
    parsers["split"].add_argument("--share", type=float, default=0.05, help="of sources held out (0.05)")
    parsers["split"].add_argument("--seed", type=int, default=0, help="another choice of sources")
    parsers["split"].add_argument("--by", default="video", metavar="KEY", help="of `source` (video)")
    args, rest = parser.parse_known_args()  # changes that do not follow DIR at once are left over
    late = [word for word in rest if "=" in word and not word.startswith("-") and "config" in args]
    if late != rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        args.overrides += late
    if args.verb == "split" and not 0 < args.share < 1:
        parser.error(f"--share {args.share:g}: must lie between 0 and 1")
    return args


if __name__ == "__main__":
    main_guard(main)

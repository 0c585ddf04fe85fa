"""Weights in and out of megatv, and a look into any safetensors.

hf-to-megatv  Hugging Face Llama -> checkpoint at step 0: the text tower is that Llama, bit for bit
megatv-to-hf  text tower of a checkpoint -> Hugging Face Llama
export        whole model of a checkpoint -> safetensors parts with index and config, for sampling and sharing
average       mean of several checkpoints of one model -> checkpoint at step 0, to sample and to train on from
inspect       tensors, shapes, dtypes, sizes and meta record
verify        every checksum and every tensor of the model; a line for each fault, then exit code 2
diff          how far two checkpoints are apart, the most different tensors first; exit code 1 if at all

    python tools/convert_ckpt.py hf-to-megatv Llama-3.1-8B --config configs/8b_sports.yaml --out start
    python tools/convert_ckpt.py megatv-to-hf runs/8b_sports --like Llama-3.1-8B --out words_alone
    python tools/convert_ckpt.py export runs/8b_sports --dtype bfloat16 --part-gb 5 --out shared
    python tools/convert_ckpt.py average runs/8b_sports/checkpoints/step_0024* --out mean
    python tools/convert_ckpt.py inspect runs/8b_sports
    python tools/convert_ckpt.py verify runs/8b_sports
    python tools/convert_ckpt.py diff runs/8b_sports shared

A Llama of other sizes than the config's is refused with the overrides that make the two agree; give them as
`--set model.width=2048 model.layers=16`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from megatv.choices import WeightDtype
from megatv.config import load_config
from megatv.log import main_guard, say


def main() -> int:
    """Parse the command line and run one command."""
    args = parse_arguments()
    config = load_config(args.config, args.set) if args.command == "hf-to-megatv" else None
    # these import torch, which takes seconds
    from megatv.checkpoint.compare import diff, faults
    from megatv.checkpoint.convert import average, export, from_llama, to_llama
    from megatv.checkpoint.describe import describe

    if args.command == "inspect":
        say(describe(args.path))
        return 0
    if args.command == "verify":
        found = list(faults(args.path))
        say("\n".join(found) or f"{args.path}: sound")
        return 2 if found else 0
    if args.command == "diff":
        lines, differ = diff(args.a, args.b)
        say("\n".join(lines))
        return int(differ)
    if config is not None:
        from_llama(args.llama, config, args.out)
    elif args.command == "average":
        average(args.checkpoints, args.out, weights=args.weights)
    else:
        if args.part_gb <= 0:
            raise ValueError(f"--part-gb {args.part_gb}: must be above 0")
        part_bytes = int(args.part_gb * 1e9)
        options = {"weights": args.weights, "dtype": args.dtype, "part_bytes": part_bytes}
        if args.command == "megatv-to-hf":
            to_llama(args.checkpoint, args.out, like=args.like, **options)
        else:
            export(args.checkpoint, args.out, **options)
    say(f"written to {args.out}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str) -> argparse.ArgumentParser:
        example = next(line for line in __doc__.splitlines() if f"convert_ckpt.py {name} " in line)
        return commands.add_parser(name, epilog=f"example: {example.strip()}")

    command = add("hf-to-megatv")
    command.add_argument("llama", type=Path, help="directory with config.json and safetensors")
    command.add_argument("--config", required=True, help="the run's YAML; its `model` must be that Llama's")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="section.key=value")

    for name, dtype in (("megatv-to-hf", None), ("export", "float32")):
        command = add(name)
        command.add_argument("checkpoint", type=Path, help="a checkpoint, or a run (its newest one)")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument(
            "--weights", choices=["auto", "ema", "model"], default="auto", help="auto: averaged ones if saved"
        )
        command.add_argument("--dtype", choices=get_args(WeightDtype), default=dtype)
        command.add_argument("--part-gb", type=float, default=5.0, help="largest file, in 10^9 bytes")
        if name == "megatv-to-hf":
            command.add_argument("--like", type=Path, help="Llama directory to take token ids and dtype from")

    command = add("average")
    command.add_argument("checkpoints", type=Path, nargs="+", help="or exports, or runs (their newest)")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument(
        "--weights", choices=["model", "ema"], default="model", help="ema: mean of the averaged weights"
    )

    command = add("inspect")
    command.add_argument(
        "path", type=Path, help="a run, a checkpoint, a model directory or a safetensors file"
    )
    command = add("verify")
    command.add_argument("path", type=Path, help="a checkpoint, or a run (all of its checkpoints)")

    command = add("diff")
    for side in ("a", "b"):
        command.add_argument(side, type=Path, help="a run, a checkpoint, a model directory or a file")
    return parser.parse_args()


if __name__ == "__main__":
    main_guard(main)

"""The paper's controlled experiment on the toy world: TV2TV, T2V and Think2V from one data set (section 3).

    python tools/experiment.py --config configs/toy_experiment.yaml --out runs/experiment
        [section.key=value ...] [--steps N] [--seeds 0] [--starts 64] [--seconds 30] [--episodes 3000]

Makes the codec and the shards that the config names where they are missing, trains the three arms, which
differ in `sequence.mode` alone, lets each continue the same starts, scores the pictures with the world's own
reader, and writes OUT/report.html, its plots as PNG, and OUT/scores.json. What is finished is kept: started
again, it goes on where it was. The report says what was measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from experiment_report import write_report  # the tool beside this one
from megatv.checkpoint.meta import config_of, read_meta
from megatv.config import load_config
from megatv.log import main_guard, say

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("tv2tv", "t2v", "think2v")
CODEC_EPISODES, VAL_EPISODES = 1500, 128
COMPARED = (
    *("run", "video", "codec", "tokenizer", "data", "sequence"),
    *("model", "batch", "objective", "optim", "precision"),
)
"""Sections of a config that make a run another one."""


def main() -> None:
    """Prepare, train, measure, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the config")
    parser.add_argument("--config", required=True, help="the toy world's YAML")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the report")
    parser.add_argument("--steps", type=int, help="optimizer steps of each run (default: run.steps)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each trains three runs")
    parser.add_argument("--starts", type=int, default=64, help="held-out starts, continued by every run")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the long videos")
    parser.add_argument("--batch", type=int, default=64, help="videos sampled at a time")
    parser.add_argument("--episodes", type=int, default=3000, help="of the training shards, if missing")
    parser.add_argument("--device", help="default: a GPU, or the CPU where there is none")
    args = parser.parse_args()
    for key, least in (("starts", 2), ("seconds", 4), ("batch", 1), ("episodes", 1)):
        if getattr(args, key) < least:
            raise ValueError(f"--{key} {getattr(args, key)}: must be at least {least}")
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--seeds {' '.join(map(str, args.seeds))}: give every seed once")
    # these import torch, which takes seconds
    from megatv.eval.toy_compare import compare
    from megatv.eval.toy_runs import contact_sheets, facts, measure
    from megatv.sample.sampler import some_device

    args.device = args.device or some_device()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.steps is not None:
        args.overrides.append(f"run.steps={args.steps}")
    prepare(args.config, args.overrides, args.episodes)
    runs = {
        mode: [train(args.config, args.overrides, args.out, mode, seed) for seed in args.seeds]
        for mode in ARMS
    }
    arms, truth = measure(runs, args)
    say("\n== comparing")
    scores = {**facts(runs, arms, args), **compare(arms, truth)}
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    write_report(args.out, scores, contact_sheets(runs, args))
    say(f"\n{args.out / 'report.html'}")


def prepare(config_file: str, overrides: list[str], episodes: int) -> None:
    """Make the codec and the shards, as launch/demo.sh does, where they are missing."""
    config = load_config(config_file, overrides)
    codec, data = config.codec, config.data
    if codec.path and not Path(codec.path).exists():
        tool("train_codec.py", "--toy", str(CODEC_EPISODES), "--out", codec.path)
    shards = (*overrides, "--config", config_file, "--toy")
    if not Path(data.train).exists():
        tool("make_shards.py", *shards, str(episodes), "--split", "train", "--out", data.train)
    if data.val and not Path(data.val).exists():
        held_out = ("--split", "val", "--stats", data.train, "--out", data.val)
        tool("make_shards.py", *shards, str(VAL_EPISODES), *held_out)


def train(config_file: str, overrides: list[str], out: Path, mode: str, seed: int) -> Path:
    """The run of one arm, trained to its end by the launcher; a finished one is kept."""
    from megatv.checkpoint.store import latest  # imports torch

    import torch

    run = out / f"{mode}-{seed}"
    # Think2V's plan has TV2TV's words and a newline after each chunk's: room for them, in all arms alike
    base = load_config(config_file, overrides)
    overrides = [*overrides, f"run.dir={run}", f"run.seed={seed}", f"sequence.mode={mode}"]
    rows = base.sequence.context_tokens + base.sequence.examples_per_row * base.latents
    overrides.append(f"sequence.context_tokens={rows}")
    # T2V's words are the prompt alone: once they are learned its text loss is about 0, and Adam, whose second
    # moments have shrunk with it, may then take a step that undoes that. Clipped gradients mend it in some
    # steps; skipping them, as health would, leaves it as it is
    overrides.append("health.spike_factor=0")
    config = load_config(config_file, overrides)
    newest, _ = latest(run)
    if newest is not None:
        made_with = config_of(read_meta(newest), newest)
        for section in COMPARED:
            if getattr(made_with, section) != getattr(config, section):
                raise ValueError(f"{run}: was made with another `{section}` section; choose another --out")
    if newest is None or read_meta(newest)["step"] < config.run.steps:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        launcher = Path(sys.executable).with_name("deepspeed")
        processes = ("--num_gpus", str(torch.cuda.device_count() or 2), "--master_port", str(port))
        command = (str(ROOT / "launch/train.py"), "--config", config_file, "--resume", "auto", *overrides)
        command_line(str(launcher), *processes, *command)
    return run


def tool(name: str, *arguments: str) -> None:
    """Run a tool of this folder."""
    command_line(sys.executable, str(ROOT / "tools" / name), *arguments)


def command_line(*words: str) -> None:
    """Run a command to its end. Raises ValueError when it fails; it has said why."""
    import torch  # which takes seconds

    say(f"\n== {' '.join(words)}")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    code = subprocess.run(words, env=environment).returncode
    if code:
        raise ValueError(f"{Path(words[0]).name} ended with exit code {code}; its own message stands above")


if __name__ == "__main__":
    main_guard(main)

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
import dataclasses
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiment_report import write_report  # the tool beside this one
from megatv.checkpoint.meta import config_of, read_meta
from megatv.checkpoint.store import latest
from megatv.checkpoint.trust import Trust
from megatv.config import load_config
from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_world import chunk_starts, simulate
from megatv.eval.inverse_dynamics import Eye, clips_of, labels_of, train_eye
from megatv.eval.toy_arm import Measured, Stage, measure_arm, measure_truth
from megatv.eval.toy_compare import OURS, compare
from megatv.eval.toy_scores import intervention_words
from megatv.eval.toy_starts import CHUNKS, FIRST_EPISODE, codec_pass, start_requests, states_of, through_codec
from megatv.log import main_guard, read_metrics, say
from megatv.sample import Intervention, Sampler
from megatv.sample.render import Strip, contact_sheet

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("tv2tv", "t2v", "think2v")
CODEC_EPISODES, VAL_EPISODES = 1500, 128
EYE_EPISODES = 600
COMPARED = (
    *("run", "video", "codec", "tokenizer", "data", "sequence"),
    *("model", "batch", "objective", "optim", "precision"),
)
"""Sections of a config that make a run another one."""
OWN = Trust(checkpoint=True)
"""The runs here have the places of --config, which `train` compares with theirs."""
STEERED = "left_click"
"""The intervention that the contact sheet shows."""


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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    for key, least in (("starts", 2), ("seconds", 4), ("batch", 1), ("episodes", 1)):
        if getattr(args, key) < least:
            raise ValueError(f"--{key} {getattr(args, key)}: must be at least {least}")
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--seeds {' '.join(map(str, args.seeds))}: give every seed once")
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
    say(f"\n== {' '.join(words)}")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    code = subprocess.run(words, env=environment).returncode
    if code:
        raise ValueError(f"{Path(words[0]).name} ended with exit code {code}; its own message stands above")


def measure(
    runs: dict[str, list[Path]], args: argparse.Namespace
) -> tuple[dict[str, list[Measured]], Measured]:
    """Every run's measurements by mode, and the true episodes'; those of an earlier call are kept."""
    sampler = Sampler.from_checkpoint(runs[OURS][0], args.device, trust=OWN)
    stage = Stage.open(sampler, args.starts, open_eye(sampler, args.out / "eye.pt"), args.batch)
    length = {"seconds": args.seconds, "batch": args.batch}
    asked = {"starts": args.starts, "seconds": args.seconds, "codec": sampler.stats.fingerprint()}
    truth = kept(args.out / "measured/data.npz", asked, lambda: measure_truth(sampler, stage, **length))
    arms: dict[str, list[Measured]] = {mode: [] for mode in runs}
    for mode, paths in runs.items():
        for seed, path in zip(args.seeds, paths, strict=True):
            arm = Sampler.from_checkpoint(path, args.device, trust=OWN)
            settings = {"step": arm.step, **dataclasses.asdict(arm.config.sample)}
            work = partial(measure_arm, arm, stage, seed=seed, settings=arm.config.sample, done=say, **length)
            arms[mode].append(kept(args.out / f"measured/{path.name}.npz", asked | settings, work))
    return arms, truth


def kept(path: Path, asked: dict[str, Any], work: Callable[[], Measured]) -> Measured:
    """The measurements in `path` if they are those that are asked for; else made now and written there."""
    key = json.dumps(asked)
    if path.exists():
        with np.load(path) as file:
            if str(file["asked"]) == key:
                return {name: file[name] for name in file.files if name != "asked"}
    say(f"\n== measuring {path.stem}")
    begun = time.perf_counter()
    found = work() | {"measuring_seconds": np.array(time.perf_counter() - begun)}
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    np.savez_compressed(unfinished, asked=key, **found)
    unfinished.replace(path)
    return found


def open_eye(sampler: Sampler, path: Path) -> Eye:
    """The network whose features the Frechet distance compares, trained where it is missing."""
    if path.exists():
        eye = Eye()
        eye.load_state_dict(torch.load(path, weights_only=True))
        return eye.eval()
    say("\n== training the eye")
    episodes = [simulate(seed, sampler.config.video.groups) for seed in range(EYE_EPISODES)]
    clips, labels = seen(sampler, episodes)
    eye = train_eye(clips, labels)
    torch.save(eye.state_dict(), path)
    return eye


def seen(sampler: Sampler, episodes: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Clips [n, 5, H, W, 3] of true episodes as the codec shows them, and what happens in them."""
    starts = chunk_starts(len(episodes[0].frames))
    clips = clips_of(through_codec(sampler, episodes)[0], starts)
    labels = labels_of(states_of(episodes), starts)
    return clips.reshape(-1, *clips.shape[2:]), labels.reshape(-1, labels.shape[-1])


def facts(
    runs: dict[str, list[Path]], arms: dict[str, list[Measured]], args: argparse.Namespace
) -> dict[str, Any]:
    """What the report must say of how its figures came about."""
    sampler = Sampler.from_checkpoint(runs[OURS][0], args.device, trust=OWN)
    config = sampler.config
    held_out = [simulate(FIRST_EPISODE + i, config.video.groups) for i in range(args.starts)]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(args.device),
        "config": " ".join([args.config, *args.overrides]),
        "steps": config.run.steps,
        "examples_a_step": config.batch.examples,
        "seeds": args.seeds,
        "long_seconds": int(args.seconds),
        "trained_frames": len(held_out[0].frames),
        "euler_steps": config.sample.steps,
        "eye_accuracy": open_eye(sampler, args.out / "eye.pt").accuracy(*seen(sampler, held_out)),
        "runs": {
            path.name: {
                "training_seconds": sum(r["seconds"] for r in records if "loss" in r),
                "measuring_seconds": float(found["measuring_seconds"]),
                **{key: value for r in records for key, value in r.items() if key.startswith("val_ema_")},
            }
            for mode, paths in runs.items()
            for path, found in zip(paths, arms[mode], strict=True)
            for records in [read_metrics(path / "metrics.jsonl")]
        },
    }


def contact_sheets(runs: dict[str, list[Path]], args: argparse.Namespace) -> dict[str, Any]:
    """The first start in the hands of each arm: left alone, and where it can be, told to shoot."""
    samplers = {
        mode: Sampler.from_checkpoint(paths[0], args.device, trust=OWN) for mode, paths in runs.items()
    }
    sampler = samplers[OURS]
    episodes = [simulate(FIRST_EPISODE + i, sampler.config.video.groups) for i in range(args.starts)]
    _, latents = codec_pass(sampler, episodes, args.batch)
    request = start_requests(episodes, latents, args.seeds[0])[0]
    told = (Intervention(chunk_start_seconds(CHUNKS[0]), intervention_words(STEERED)),)
    steered = dataclasses.replace(request, interventions=told)
    alone = [Strip.of(mode, s.generate([request])[0]) for mode, s in samplers.items()]
    changed = [Strip.of(m, s.generate([steered])[0]) for m, s in samplers.items() if m != "t2v"]
    return {
        "arms": contact_sheet(alone, "One start, three arms, left alone"),
        "steered": contact_sheet(changed, f"The same start, told to {STEERED.replace('_', ' ')} at 0.81 s"),
    }


def machine(device: str) -> str:
    """The processor or the GPU that this runs on, in a few words."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


if __name__ == "__main__":
    main_guard(main)

"""The runs of `tools/experiment.py` measured: every arm on the same starts, what came of it, its pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatv.checkpoint.trust import Trust
from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_world import chunk_starts, simulate
from megatv.eval.inverse_dynamics import Eye, clips_of, labels_of, train_eye
from megatv.eval.toy_arm import Measured, Stage, measure_arm, measure_truth
from megatv.eval.toy_compare import OURS
from megatv.eval.toy_scores import intervention_words
from megatv.eval.toy_starts import CHUNKS, FIRST_EPISODE, codec_pass, start_requests, states_of, through_codec
from megatv.log import read_metrics, say
from megatv.sample.render import Strip, contact_sheet
from megatv.sample.request import Intervention
from megatv.sample.sampler import Sampler

EYE_EPISODES = 600
OWN = Trust(checkpoint=True)
"""The runs here have the places of --config, which the tool compares with theirs."""
STEERED = "left_click"
"""The intervention that the contact sheet shows."""


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

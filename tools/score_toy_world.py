"""Score a toy-world checkpoint: do its words make sense, and do its pictures do what the words say?

    python tools/score_toy_world.py --checkpoint runs/toy_world --out scores.json

Fresh episodes of the world, which no training saw, give the starts: one frame each, and the meta-prompt. The
model says all words, those of t = 0 as well (TV2TV figure 3). Every start is continued once left alone, and
once for each of four actions at two times (section 3.3: 0.8125 s and 2.8125 s, chunks 4 and 12) with the same
seed and the action in place of the model's own words for one chunk. The world's own reader judges the
pictures (`megatv.eval`). Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from megatv.checkpoint.trust import Trust
from megatv.config import SampleConfig
from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_world import simulate
from megatv.eval.toy_scores import (
    impossible_transitions,
    intervention_scores,
    rate,
    residual_limit,
    valid_lines,
    words_followed,
)
from megatv.eval.toy_starts import FIRST_EPISODE, codec_pass, intervened, read, start_requests
from megatv.log import main_guard, progress
from megatv.regular_file import require_place, write_file
from megatv.sample import Request, Result, Sampler

import numpy as np
import torch


def main() -> None:
    """Sample, score, print, write."""
    parser = scoring_parser(__doc__)
    parser.add_argument("--steps", type=int, help="Euler steps a chunk (default: sample.steps of the config)")
    args = parser.parse_args()
    check_scoring(args)
    sampler = Sampler.from_checkpoint(args.checkpoint, args.device, trust=Trust.given(args))
    settings = sampler.config.sample
    if args.steps is not None:
        settings = dataclasses.replace(settings, steps=args.steps)
    begun = time.perf_counter()
    scores = score(sampler, args.starts, args.batch, args.seed, settings)
    record = {
        "checkpoint": args.checkpoint,
        "step": sampler.step,
        "mode": sampler.config.sequence.mode,
        "starts": args.starts,
        "seed": args.seed,
        "settings": dataclasses.asdict(settings),
        "seconds": time.perf_counter() - begun,
        **scores,
    }
    print(table(record))
    if args.out:
        write_file(args.out, json.dumps(record, indent=1) + "\n")


def scoring_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of whatever scores checkpoints of the toy world."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint directory, or a run")
    parser.add_argument("--out", type=Path, help="write all scores here as JSON")
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="videos sampled at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling; the starts are always the same")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    Trust.add_options(parser)
    return parser


def check_scoring(args: argparse.Namespace) -> None:
    """Refuse (ValueError) numbers and a place that would fail after the work."""
    for key in ("starts", "batch"):
        if getattr(args, key) < 1:
            raise ValueError(f"--{key} {getattr(args, key)}: must be at least 1")
    require_place(args.out)


def score(sampler: Sampler, starts: int, batch: int, seed: int, settings: SampleConfig) -> dict[str, Any]:
    """All scores of one model. Raises ValueError when the codec is too coarse for the reader."""
    groups = sampler.config.video.groups
    episodes = [simulate(FIRST_EPISODE + i, groups) for i in range(starts)]
    real, latents = codec_pass(sampler, episodes, batch)
    requests = start_requests(episodes, latents, seed)
    plans = list(intervened(sampler, requests))
    total = -(-starts // batch) * (1 + len(plans))
    bar = iter(progress(range(total), total=total, desc="score"))

    def sample(wanted: list[Request]) -> list[Result]:
        results = []
        for at in range(0, len(wanted), batch):
            results += sampler.generate(wanted[at : at + batch], settings)
            next(bar)
        return results

    begun = time.perf_counter()
    alone = sample(requests)
    speed = sum(len(result.latents) for result in alone) / (time.perf_counter() - begun)
    whole = [result for result in alone if not result.ended]
    if not whole:
        raise ValueError("the model ends every video early, so there is nothing to score: train it longer")
    reading = read(whole)
    lines = [[said.text for said in result.transcript] for result in whole]
    scores: dict[str, Any] = {
        "latents_per_second": speed,
        "ended_early": starts - len(whole),
        "psnr": float(reading.psnr[:, 1:].mean()),
        "psnr_of_codec": float(real.psnr[:, 1:].mean()),
        "impossible_transitions": rate(impossible_transitions(reading.states)),
    }
    if plans:
        limit = residual_limit(real)
        scores["valid_lines"] = rate(valid_lines(lines))
        followed = words_followed(reading.states, lines)
        scores["words_followed"] = {name: rate(seen) for name, seen in followed.items()}
        scores["interventions"] = []
        for name, chunk, changed in plans:
            done = read([result for result in sample(changed) if not result.ended])
            scores["interventions"].append(
                {
                    "action": name,
                    "seconds": chunk_start_seconds(chunk),
                    "done": rate(intervention_scores(done, name, chunk, limit)),
                    "without": rate(intervention_scores(reading, name, chunk, limit)),
                }
            )
        for key in ("done", "without"):
            means = [row[key]["mean"] for row in scores["interventions"] if row[key]["n"]]
            scores[f"interventions_{key}_mean"] = float(np.mean(means)) if means else None
    return scores


def table(record: dict[str, Any]) -> str:
    """The scores for people."""

    def percent(value: dict[str, Any]) -> str:
        if not value["n"]:
            return "        -"
        interval = f"({100 * value['low']:.1f} to {100 * value['high']:.1f})"
        return f"{100 * value['mean']:5.1f} %  {interval:<16} n = {value['n']}"

    rows = [
        ("checkpoint", f"{record['checkpoint']}, step {record['step']}, {record['mode']}"),
        ("starts", f"{record['starts']}, of which {record['ended_early']} ended early"),
        (
            "PSNR to the nearest valid frame",
            f"{record['psnr']:.1f} dB (codec: {record['psnr_of_codec']:.1f} dB)",
        ),
        ("impossible transitions", percent(record["impossible_transitions"])),
    ]
    if "interventions" in record:
        rows.append(("valid action lines", percent(record["valid_lines"])))
        rows += [(f"words followed: {k}", percent(v)) for k, v in record["words_followed"].items()]
        for row in record["interventions"]:
            rows.append((f"done: {row['action']} at {row['seconds']:.2f} s", percent(row["done"])))
            rows.append(("    left alone", percent(row["without"])))
        for name, key in (("interventions done, mean", "done"), ("    left alone", "without")):
            mean = record[f"interventions_{key}_mean"]
            rows.append((name, "        -" if mean is None else f"{100 * mean:5.1f} %"))
    rows.append(
        ("sampling", f"{record['latents_per_second']:.0f} latents/s, {record['seconds']:.0f} s in all")
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


if __name__ == "__main__":
    main_guard(main)

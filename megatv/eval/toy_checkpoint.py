"""All scores of one model of the toy world, as `tools/score_toy_world.py` describes them, and their table."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

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
from megatv.log import progress
from megatv.sample import Request, Result, Sampler


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

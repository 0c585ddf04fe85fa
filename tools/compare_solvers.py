"""Solvers of the flow at equal cost: how far from the exact chunk, for so many evaluations of the model.

    python tools/compare_solvers.py --checkpoint runs/toy_world [--starts 32] [--out solvers.json]

Held-out examples (data.val) give the first four chunks with their words; the fifth is drawn under the
example's own words from the same noise by every solver. The exact chunk is that of Heun in 200 steps.
Distances are root mean squares in normalised latents, whose data have unit variance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from megatv.checkpoint.trust import Trust
from megatv.data.sequence import chunk_start_seconds, texts_by_chunk
from megatv.log import main_guard, progress
from megatv.regular_file import require_place
from megatv.sample import Intervention, Request, Sampler
from megatv.sample.inputs import held_out
from megatv.sample.solver import SOLVERS

import numpy as np
import torch

GIVEN = 4
EVALUATIONS = (3, 5, 9, 17, 33)
"""Odd, since Heun takes two a step but for the last."""
EXACT_STEPS = 200


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint directory, or a run")
    parser.add_argument("--starts", type=int, default=32, help="held-out examples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    Trust.add_options(parser)
    args = parser.parse_args()
    require_place(args.out)
    if args.starts < 1:
        raise ValueError(f"--starts {args.starts}: must be at least 1")
    # in less than fp32 the rounding of the model would hide how near the solvers come
    sampler = Sampler.from_checkpoint(args.checkpoint, args.device, precision="fp32", trust=Trust.given(args))
    requests = starts(sampler, args.starts)
    exact = fifth_chunks(sampler, requests, "heun", EXACT_STEPS)
    runs = [(name, n) for name in SOLVERS for n in EVALUATIONS]
    found = {
        (name, n): rms(fifth_chunks(sampler, requests, name, (n + 1) // 2 if name == "heun" else n) - exact)
        for name, n in progress(runs, desc="solvers")
    }
    print(
        f"| {len(requests)} chunks; distance to the exact one | " + " | ".join(map(str, EVALUATIONS)) + " |"
    )
    print("|---" * (1 + len(EVALUATIONS)) + "|")
    for name in SOLVERS:
        print(f"| {name} | " + " | ".join(f"{found[name, n]:.4f}" for n in EVALUATIONS) + " |")
    if args.out:
        tree = {name: {n: found[name, n] for n in EVALUATIONS} for name in SOLVERS}
        args.out.write_text(json.dumps({"chunks": len(requests), "rms": tree}, indent=1) + "\n")


def starts(sampler: Sampler, count: int) -> list[Request]:
    """Requests for one chunk each, after the first chunks of held-out examples."""
    shards, mode = held_out(sampler), sampler.config.sequence.mode
    whole = [
        example for example in map(shards.__getitem__, range(len(shards))) if example.valid_latents > GIVEN
    ]
    if len(whole) < count:
        raise ValueError(
            f"{shards.path} has {len(whole)} examples of more than {GIVEN} chunks: --starts {count}"
        )
    requests = []
    for seed, example in enumerate(whole[:count]):
        words = ["\n".join(texts) for texts in texts_by_chunk(example)]
        spoken = [Intervention(chunk_start_seconds(GIVEN), words[GIVEN])] if mode == "tv2tv" else []
        requests.append(
            Request(
                example.meta_caption,
                first_latents=sampler.stats.normalize(shards.stats.denormalize(example.latents[:GIVEN])),
                given_words=tuple(words[:GIVEN]) if mode == "tv2tv" else (),
                interventions=tuple(spoken),
                seconds=chunk_start_seconds(GIVEN + 1),
                seed=seed,
            )
        )
    return requests


def fifth_chunks(sampler: Sampler, requests: list[Request], solver: str, steps: int) -> np.ndarray:
    """float32 [B, C, h, w]: the first chunk that is drawn of every request."""
    changed = {"solver": solver, "steps": steps, "temperature": 0.0}
    settings = dataclasses.replace(sampler.config.sample, **changed)  # type: ignore[arg-type]
    return np.stack([result.latents[GIVEN] for result in sampler.generate(requests, settings)])


def rms(distance: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(distance, dtype=np.float64))))


if __name__ == "__main__":
    main_guard(main)  # type: ignore[arg-type]

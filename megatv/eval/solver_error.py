"""How far a solver of the flow ends from the exact chunk, for `tools/compare_solvers.py`."""

from __future__ import annotations

import dataclasses

import numpy as np

from megatv.data.sequence import chunk_start_seconds, texts_by_chunk
from megatv.sample.inputs import held_out
from megatv.sample.request import Intervention, Request
from megatv.sample.sampler import Sampler

GIVEN = 4


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

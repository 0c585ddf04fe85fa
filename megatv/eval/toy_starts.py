"""Starts of the toy world that no training saw, and what models are asked to make of them.

Every start is the meta-prompt and one true frame; the model says the words of t = 0 as it does all others
(TV2TV figure 3), so that no arm is told a true word. It is continued once left alone, and once for each of
four actions at two times (section 3.3) with the same seed and the action in place of the model's own words
for one chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_world import META_PROMPT, Episode, State
from megatv.eval.toy_scores import INTERVENTIONS, intervention_words
from megatv.eval.toy_world import Reading, check_reader, read_states
from megatv.sample import Intervention, Request, Result, Sampler

CHUNKS = (4, 12)
"""Where words are changed: the paper's two times, 0.8125 s and 2.8125 s."""
FIRST_EPISODE = 1 << 62
"""Seed of the first start; the shards of tools/make_shards.py use smaller ones."""


def states_of(episodes: list[Episode]) -> State:
    """The true states of episodes of one length: fields int64 [V, F]."""
    return State(*(np.stack(field) for field in zip(*(e.states for e in episodes), strict=True)))


def through_codec(
    sampler: Sampler, episodes: list[Episode], batch: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """True episodes as the codec shows them, uint8 [V, F, H, W, 3], and their normalised latents."""
    latents, frames = [], []
    for at in range(0, len(episodes), batch):
        raw = sampler.codec.encode(torch.from_numpy(np.stack([e.frames for e in episodes[at : at + batch]])))
        frames.append(sampler.codec.decode(raw).cpu().numpy())
        latents.append(sampler.stats.normalize(raw).cpu().numpy())
    return np.concatenate(frames), np.concatenate(latents)


def codec_pass(sampler: Sampler, episodes: list[Episode], batch: int) -> tuple[Reading, np.ndarray]:
    """True episodes as the codec decodes them, read and checked, and their normalised latents."""
    frames, latents = through_codec(sampler, episodes, batch)
    return check_reader(frames, states_of(episodes)), latents


def start_requests(episodes: list[Episode], latents: np.ndarray, seed: int) -> list[Request]:
    """Each episode's first chunk, to be continued. latents: normalised, [V, N, C, h, w]."""
    return [
        Request(META_PROMPT, first_latents=latents[i, :1], seed=seed * len(episodes) + i)
        for i in range(len(episodes))
    ]


def intervened(sampler: Sampler, requests: list[Request]) -> Iterator[tuple[str, int, list[Request]]]:
    """(action, chunk, requests) of every intervention, as long as it takes to see it; none for t2v."""
    if sampler.config.sequence.mode == "t2v":
        return
    for chunk in CHUNKS:
        # a jump may show one chunk later
        seconds = chunk_start_seconds(min(chunk + 2, sampler.config.latents))
        for name in INTERVENTIONS:
            changed = (Intervention(chunk_start_seconds(chunk), intervention_words(name)),)
            asked = [dataclasses.replace(r, interventions=changed, seconds=seconds) for r in requests]
            yield name, chunk, asked


def told(requests: list[Request], episodes: list[Episode]) -> list[Request]:
    """The same starts with the words of their true episodes before every chunk: their pictures are known.

    The first frame's words too, in TV2TV's sequence and in Think2V's plan alike.
    """
    changed = []
    for request, episode in zip(requests, episodes, strict=True):
        first, *later = episode.captions()
        spoken = tuple(Intervention(caption.start_seconds, caption.text) for caption in later)
        changed.append(dataclasses.replace(request, given_words=(first.text,), interventions=spoken))
    return changed


def read(results: list[Result]) -> Reading:
    """What the videos show."""
    return read_states(np.stack([result.frames for result in results]))

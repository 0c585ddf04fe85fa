"""What test_tensor_parallel.py lets every rank do: python tensor_parallel.py RUN OUT."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import torch

from megatv.parallel.environment import prepare
from megatv.sample import Intervention, Request, Result, Sampler
from megatv.sample.ranks import Ranks, leave


def videos(sampler: Sampler) -> list[Result]:
    """All modes with and without guidance, ragged prompts, interventions, and windows that slide."""
    settings = dataclasses.replace(sampler.config.sample, steps=2, temperature=1.0)
    words = (Intervention(0.8, "(w). 2, 0, 0, 0."), Intervention(2.0, ""))
    requests = [
        Request("A player jumps.", seed=1, seconds=3.5),
        Request("A player jumps and shoots among pillars.", seed=2, interventions=words),
        Request("", seed=3, mode="t2v"),
        Request("A player turns.", seed=4, mode="think2v", interventions=words),
    ]
    plain = sampler.generate(requests, settings)
    return plain + sampler.generate(requests[:3], dataclasses.replace(settings, cfg=2.0))


def main() -> None:
    """Sample as one of two, and keep what came out."""
    device = prepare()
    ranks = Ranks(2, device)
    sampler = Sampler.from_checkpoint(sys.argv[1], device, mesh=ranks.mesh)
    weight = sampler.model.blocks[0].text.wq.weight
    assert weight.shape[0] == sampler.config.model.width // 2, "the matrix is not shared"
    made = videos(sampler)
    said = np.array(["\n".join(w.text for w in result.transcript) + result.plan for result in made])
    np.savez(f"{sys.argv[2]}_{torch.distributed.get_rank()}.npz", said, *(r.latents for r in made))
    leave()


if __name__ == "__main__":
    main()

"""Captured steps: the sampler uses them as they are, with outputs that the next call overwrites."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch

from megatv.sample import Intervention, Request, graphs
from megatv.sample.context import CAPTURED

REQUESTS = [
    Request("abc", seed=1, seconds=4.0),
    Request("a", seed=2, interventions=(Intervention(1.0, "jj."),)),
]


class Replayed:
    """A captured step without a GPU: it knows its first inputs' shapes, and has one output for all calls."""

    made: ClassVar[list["Replayed"]] = []

    def __init__(self, step, *inputs):
        self.step, self.inputs = step, [x.clone() for x in inputs]
        self.output = step(*self.inputs).clone()
        Replayed.made.append(self)

    def __call__(self, *inputs):
        self.output.fill_(torch.nan)
        for own, given in zip(self.inputs, inputs, strict=True):
            assert own.shape == given.shape
            own.copy_(given)
        self.output.copy_(self.step(*self.inputs))
        return self.output


@pytest.mark.parametrize("mode", ["tv2tv", "t2v", "think2v"])
@pytest.mark.parametrize(("solver", "cfg"), [("euler", 1.0), ("heun", 2.0), ("dpmpp", 1.0)])
def test_captured_steps_make_the_same_videos(make_sampler, monkeypatch, mode, solver, cfg):
    sampler = make_sampler(mode)
    requests = [dataclasses.replace(r, interventions=()) for r in REQUESTS] if mode == "t2v" else REQUESTS
    settings = dataclasses.replace(sampler.config.sample, solver=solver, cfg=cfg, steps=3)
    plain = sampler.generate(requests, settings)
    Replayed.made.clear()
    monkeypatch.setattr(graphs, "Captured", Replayed)
    monkeypatch.setattr(graphs, "capturable", lambda x: True)
    captured = sampler.generate(requests, settings)
    # each of two windows: a chunk's pass, and one of a few tokens with and without the text-free twins
    assert len(Replayed.made) <= 2 * (1 + 2 * CAPTURED)
    for a, b in zip(plain, captured, strict=True):
        assert a.transcript == b.transcript
        np.testing.assert_array_equal(a.latents, b.latents)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_graphs_equal_plain_calls_on_a_gpu(make_sampler, monkeypatch, solver):
    sampler = make_sampler(device="cuda")
    settings = dataclasses.replace(sampler.config.sample, solver=solver, steps=4)
    captured = sampler.generate(REQUESTS, settings)
    monkeypatch.setattr(graphs, "capturable", lambda x: False)
    plain = sampler.generate(REQUESTS, settings)
    for a, b in zip(plain, captured, strict=True):
        assert a.transcript == b.transcript
        np.testing.assert_allclose(a.latents, b.latents, rtol=0, atol=1e-5)

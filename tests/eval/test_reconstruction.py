"""A model whose velocity leads to the data reconstructs it, and no chunk sees what another became."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatv.config import load_config
from megatv.data.sequence import build_sequence
from megatv.data.tokenizer import load_tokenizer
from megatv.eval.reconstruction import reconstruct
from megatv.model.mot import MoT, Output
from megatv.types import Caption, Example

CONFIG = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")


@pytest.fixture
def sequence():
    latents = np.random.default_rng(0).normal(size=(CONFIG.latents, 16, 4, 4)).astype(np.float32)
    example = Example("a", latents, (Caption(0.0, "(w). 1, 0, 0, 0."),), "m", "", CONFIG.latents - 2, False)
    tokenizer = load_tokenizer(CONFIG.tokenizer.path)
    return build_sequence(example, tokenizer, CONFIG, seed=0, epoch=0, train=False)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_perfect_model_reconstructs_the_example(sequence, steps):
    """Straight paths: v = (x_1 - x_t) / (1 - t) leads to x_1 in any number of Euler steps."""
    times = []

    def perfect(batch):
        times.append(float(batch.noisy_t[0]))
        remaining = (1 - batch.noisy_t)[:, None, None, None]
        return Output(torch.empty(0), (batch.clean - batch.noisy) / remaining)

    perfect.embed = SimpleNamespace(position=torch.empty(0))
    drawn = reconstruct(perfect, sequence, CONFIG, steps=steps)
    assert drawn.shape == sequence.clean.shape == (CONFIG.latents - 2, 16, 4, 4)
    np.testing.assert_allclose(drawn, sequence.clean, atol=1e-5)
    np.testing.assert_allclose(times, np.arange(steps) / steps, atol=1e-6)


def test_each_chunk_sees_the_true_past_only(sequence):
    torch.manual_seed(0)
    model = MoT(CONFIG).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.2)
    drawn = reconstruct(model, sequence, CONFIG, steps=2)
    clean = sequence.clean.copy()
    clean[5] += 1
    other = reconstruct(model, dataclasses.replace(sequence, clean=clean), CONFIG, steps=2)
    change = (drawn - other).abs().amax((1, 2, 3))
    assert (change[:6] < 1e-5).all() and (change[6:] > 1e-4).all()
    assert not torch.equal(drawn, reconstruct(model, sequence, CONFIG, steps=2, seed=1))

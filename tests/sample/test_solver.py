"""The solver, guidance and drawing, against closed forms."""

import math

import numpy as np
import pytest
import torch

from megatv.sample.solver import SOLVERS, draw_noise, euler, generator, guide, pick_tokens


@pytest.mark.parametrize("name", SOLVERS)
def test_the_straight_path_is_followed_exactly(name):
    """For one data point x the velocity is (x - x_t) / (1 - t): straight, so any number of steps is exact."""
    data, noise = torch.randn(3, 4), torch.randn(3, 4)
    for steps in (1, 2, 7):
        *between, x = SOLVERS[name](lambda x, t: (data - x) / (1 - t), noise, steps)
        torch.testing.assert_close(x, data)
        assert len(between) == steps - 1


def test_second_order_is_better_at_equal_cost():
    """Data N(2, 0.3^2): v = E[data - noise | x_t] is known, and the flow takes noise z to 2 + 0.3 z.

    v = 2 + (0.09 t - (1 - t)) / (0.09 t^2 + (1 - t)^2) (x - 2 t), by regression of Gaussians on each other.
    """
    noise, calls = torch.linspace(-2, 2, 9, dtype=torch.float64), []

    def velocity(x, t):
        calls.append(t)
        return 2 + (0.09 * t - (1 - t)) / (0.09 * t**2 + (1 - t) ** 2) * (x - 2 * t)

    def error(name, steps):
        calls.clear()
        *_, x = SOLVERS[name](velocity, noise, steps)
        found = (x - (2 + 0.3 * noise)).abs().max().item()
        assert len(calls) == (2 * steps - 1 if name == "heun" else steps) and max(calls) < 1
        return found

    assert abs(math.log2(error("euler", 64) / error("euler", 128)) - 1) < 0.1
    assert abs(math.log2(error("heun", 64) / error("heun", 128)) - 2) < 0.1
    assert math.log2(error("dpmpp", 128) / error("dpmpp", 256)) > 1.5
    for evaluations in (8, 16, 32):
        assert error("dpmpp", evaluations) < error("euler", evaluations) / 1.9
    for evaluations in (16, 32):
        assert error("heun", evaluations // 2) < error("euler", evaluations)


def test_euler_takes_the_documented_steps():
    """dx/dt = x gives (1 + 1/n)^n from 1; times are i/n."""
    times = []

    def velocity(x, t):
        times.append(t)
        return x

    *_, x = euler(velocity, torch.ones(1, dtype=torch.float64), 4)
    assert times == [0.0, 0.25, 0.5, 0.75]
    assert math.isclose(x.item(), 1.25**4)


def test_guidance_extrapolates_from_the_text_free_twin():
    conditional, free = torch.randn(2, 3), torch.randn(2, 3)
    both = torch.cat([conditional, free])
    torch.testing.assert_close(guide(both, 1.0), conditional)
    torch.testing.assert_close(guide(both, 0.0), free)
    torch.testing.assert_close(guide(both, 3.0), 3 * conditional - 2 * free)


def test_tokens_are_drawn_in_proportion():
    logits = torch.tensor([[0.0, math.log(2.0), -torch.inf, math.log(5.0)]])
    uniforms = (np.arange(8000) + 0.5) / 8000
    drawn = pick_tokens(logits.expand(8000, -1), 1.0, uniforms.tolist())
    assert np.bincount(drawn, minlength=4).tolist() == [1000, 2000, 0, 5000]
    cold = pick_tokens(logits.expand(8000, -1), 0.5, uniforms.tolist())
    np.testing.assert_allclose(np.bincount(cold, minlength=4) / 8000, [1 / 30, 4 / 30, 0, 25 / 30], atol=2e-4)
    assert pick_tokens(logits, 0.0, [0.0]) == [3]
    nucleus = pick_tokens(logits.expand(8000, -1), 1.0, uniforms.tolist(), top_p=0.8)  # 5/8, then 2/8 on top
    np.testing.assert_allclose(np.bincount(nucleus, minlength=4) / 8000, [0, 2 / 7, 0, 5 / 7], atol=2e-4)
    assert set(pick_tokens(logits.expand(8000, -1), 1.0, uniforms.tolist(), top_p=0.625)) == {3}


def test_streams_differ_by_seed_chunk_and_purpose():
    shape = (16, 4, 4)
    draws = [draw_noise(seed, chunk, shape) for seed in (0, 1) for chunk in (0, 1, 2)]
    draws.append(generator(0, 0, "text").standard_normal(shape, np.float32))
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3
    assert np.array_equal(draws[0], draw_noise(0, 0, shape))
    many = draw_noise(3, 3, (100_000,))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_what_is_forbidden_is_never_picked():
    """Not even by a draw of 0, when it stands first; nor by one just below 1, when it stands last."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        for uniform, token in ((0.0, 1), (1 - 2**-53, 3)):
            assert pick_tokens(logits, 1.0, [uniform], top_p) == [token]

import numpy as np
import pytest

from megatv.data.toy_world import simulate
from megatv.eval.similarity import C1, psnr, ssim


@pytest.fixture(scope="module")
def frames():
    return simulate(0).frames


def test_equal_pictures(frames):
    assert ssim(frames, frames) == pytest.approx(np.ones(49)) and psnr(frames, frames) == pytest.approx(
        58.92, abs=0.01
    )


def test_psnr_of_a_known_error(frames):
    off = np.where(frames < 128, frames + 5, frames - 5).astype(np.uint8)
    assert psnr(off, frames) == pytest.approx(10 * np.log10(255**2 / 25), rel=1e-5)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    """Without structure only (2ab + C1) / (a^2 + b^2 + C1) is left."""
    a, b = 100.0, 140.0
    flat = (np.full((1, 16, 20, 3), level, np.uint8) for level in (a, b))
    assert ssim(*flat) == pytest.approx([(2 * a * b + C1) / (a * a + b * b + C1)], rel=1e-4)


def test_ssim_of_a_negative_is_negative_and_noise_lowers_it(frames):
    assert (ssim(255 - frames, frames) < 0.2).all()
    rng = np.random.default_rng(0)
    scores = [
        ssim(np.clip(frames + rng.normal(0, sigma, frames.shape), 0, 255).astype(np.uint8), frames).mean()
        for sigma in (2, 10, 40)
    ]
    assert 1 > scores[0] > scores[1] > scores[2]


def test_only_whole_windows_count():
    """A change in one pixel reaches the windows that hold it; here that is the only one."""
    black = np.zeros((11, 11, 3), np.uint8)
    dotted = black.copy()
    dotted[5, 5] = 255
    assert ssim(dotted, black).shape == () and ssim(dotted, black) < 0.5


def test_ssim_of_one_window_by_its_equation():
    """Wang et al. 2004, equation 13, of faint pictures: there both constants weigh as much as the pixels."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 9, (11, 11, 3)).astype(np.uint8) for _ in range(2))
    weights = np.exp(-0.5 * (np.hypot(*np.mgrid[-5:6, -5:6]) / 1.5) ** 2)[..., None]
    weights /= weights.sum()
    a, b = x.astype(float), y.astype(float)
    mean_a, mean_b = ((weights * p).sum((0, 1)) for p in (a, b))
    var_a, var_b = (weights * (a - mean_a) ** 2).sum((0, 1)), (weights * (b - mean_b) ** 2).sum((0, 1))
    cov = (weights * (a - mean_a) * (b - mean_b)).sum((0, 1))
    c1, c2 = 2.55**2, 7.65**2
    wanted = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    wanted /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert ssim(x, y) == pytest.approx(wanted.mean())

"""How like a picture is to the one that it should be: PSNR and SSIM, frame by frame."""

from __future__ import annotations

import numpy as np

RADIUS, SIGMA = 5, 1.5
"""SSIM's Gaussian window of 11 pixels (Wang et al. 2004)."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 [...] in dB of uint8 [..., H, W, 3]; at most 58.9, as if rounding were the only error."""
    error = np.square(frames.astype(np.float32) - truth.astype(np.float32)).mean((-3, -2, -1))
    return 10 * np.log10(255**2 / np.maximum(error, 1 / 12))


def ssim(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 [...], 1 for equal pictures: structural similarity of uint8 [..., H, W, 3], mean over colours.

    Only windows that lie whole inside the picture count. H and W must be 11 or more.
    """
    x, y = frames.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    bottom = (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    return (top / bottom).mean((-3, -2, -1))


def _blur(pixels: np.ndarray) -> np.ndarray:
    """Gaussian means [..., H - 10, W - 10, 3] of [..., H, W, 3]."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (-3, -2):
        inside = pixels.shape[axis] - 2 * RADIUS
        taken = (np.arange(i, i + inside) for i in range(len(weights)))
        pixels = np.sum([w * pixels.take(rows, axis) for w, rows in zip(weights, taken, strict=True)], axis=0)
    return pixels

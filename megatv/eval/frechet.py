"""The Frechet distance between two sets of features, each taken for a Gaussian (Heusel et al. 2017, FID)."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (AB)^1/2) of features [n, D]; A, B their covariances.

    It means something only between sets in one feature space. Small sets overestimate it: compare it with
    that of two sets of real videos of the same size.
    """
    assert a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1], (a.shape, b.shape)
    a, b = a.astype(np.float64), b.astype(np.float64)
    apart = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _root(cov_a)
    # (AB)^1/2 has the eigenvalues of (A^1/2 B A^1/2)^1/2, which is symmetric
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return max(0.0, float(apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

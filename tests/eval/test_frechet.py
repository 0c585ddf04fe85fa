import numpy as np
import pytest

from megatv.eval.frechet import frechet_distance


def exact(mean, covariance, n=64):
    """Points whose sample mean and covariance are exactly these."""
    points = np.random.default_rng(0).normal(size=(n, len(mean)))
    points -= points.mean(0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return points @ np.linalg.cholesky(covariance).T + mean


def test_independent_channels_have_a_closed_form():
    """Diagonal covariances commute: |m - n|^2 + sum (s - t)^2."""
    a = exact(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
    b = exact(np.array([3.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + 1 + 0 + 4)
    assert frechet_distance(b, a) == pytest.approx(18)


def test_covariances_that_do_not_commute():
    """In two dimensions tr sqrt(AB) = sqrt(tr AB + 2 sqrt(det AB))."""
    a_cov, b_cov = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 0.5]])
    product = a_cov @ b_cov
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(a_cov) + np.trace(b_cov) - 2 * root
    assert frechet_distance(exact(np.zeros(2), a_cov), exact(np.zeros(2), b_cov)) == pytest.approx(expected)


def test_a_set_is_no_distance_from_itself_even_where_a_feature_is_constant():
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    features[:, 2] = 7
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 1) == pytest.approx(4, rel=1e-6)

"""The gate's threshold: where two kinds of losses cross, on scikit-learn's mixture and on known samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from rayssl.losses.gate import threshold


def _losses(*parts: tuple[int, float, float]) -> np.ndarray:
    """Of each part so many losses, whose logarithms have a mean and a deviation."""
    random = np.random.default_rng(0)
    return np.exp(np.concatenate([random.normal(mean, deviation, count) for count, mean, deviation in parts]))


def test_alike_kinds_cross_in_the_middle() -> None:
    found = threshold(_losses((20000, -2.0, 0.5), (20000, 2.0, 0.5)))
    assert math.log(found) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("parts", [((3000, -2.0, 0.8), (900, 2.0, 0.4)), ((500, -1.0, 0.3), (4000, 1.5, 0.9))])
def test_crossing_on_a_grid(parts: tuple[tuple[int, float, float], ...]) -> None:
    """As public code finds it: densities on a grid, and where their difference changes its sign."""
    losses = _losses(*parts)
    mixture = GaussianMixture(2, tol=1e-5, max_iter=1000, random_state=0).fit(np.log(losses)[:, None])
    low, high = sorted(mixture.means_[:, 0])
    grid = np.linspace(low, high, 20001)
    densities = [
        weight * norm.pdf(grid, mean[0], variance[0, 0] ** 0.5)
        for weight, mean, variance in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
    ]
    crossing = grid[np.flatnonzero(np.diff(np.sign(densities[0] - densities[1])))]
    assert len(crossing) == 1
    assert math.log(threshold(losses)) == pytest.approx(crossing[0], abs=0.01)


def test_losses_that_were_never_computed_do_not_count() -> None:
    losses = _losses((300, -2.0, 0.5), (300, 2.0, 0.5))
    assert threshold(np.concatenate([losses, np.full(500, -1.0), np.zeros(9)])) == threshold(losses)
    assert threshold(losses.astype(np.float32)) == pytest.approx(threshold(losses), rel=1e-3)


@pytest.mark.parametrize(
    "losses",
    [np.full(50, -1.0), np.ones(50), np.array([0.1, 9.0] * 4), np.zeros(0)],
    ids=["none yet", "all equal", "too few", "empty"],
)
def test_where_there_are_no_two_kinds_nothing_is_left_out(losses: np.ndarray) -> None:
    assert threshold(losses) == math.inf

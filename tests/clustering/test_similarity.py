"""The nearest centroids by brute force; NMI against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from rayssl.clustering.points import unit_rows
from rayssl.clustering.similarity import nearest_centroids, normalized_mutual_information


def _points(count: int, dim: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)


def test_nearest_centroids_by_brute_force() -> None:
    centroids = unit_rows(_points(30, 5))
    similarity = centroids @ centroids.T
    np.fill_diagonal(similarity, -2)
    assert np.array_equal(nearest_centroids(centroids, 4), np.argsort(-similarity, axis=1)[:, :4])
    with pytest.raises(ValueError, match="neighbours 30 must be fewer than clusters 30"):
        nearest_centroids(centroids, 30)


def test_equal_centroids_are_never_their_own_neighbours() -> None:
    nearest = nearest_centroids(np.tile(unit_rows(_points(1, 4)), (6, 1)), 2)
    assert nearest.shape == (6, 2)
    assert (nearest != np.arange(6)[:, None]).all()
    assert (nearest[:, 0] != nearest[:, 1]).all()


@pytest.mark.parametrize(("kinds_a", "kinds_b"), [(1, 1), (1, 5), (4, 9), (300, 300)])
def test_nmi_of_scikit_learn(kinds_a: int, kinds_b: int) -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, kinds_a, 300)
    b = np.where(random.random(300) < 0.5, a % kinds_b, random.integers(0, kinds_b, 300)) * 1000
    assert normalized_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    assert normalized_mutual_information(a, 5 - a) == pytest.approx(1.0)

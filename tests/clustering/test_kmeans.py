"""Spherical k-means against Lloyd's iterations in NumPy and faiss itself."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import faiss
import numpy as np
import pytest

from rayssl.clustering import partition, points
from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.kmeans import cluster
from rayssl.clustering.lloyd import lloyd_clusters
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.points import unit_rows
from rayssl.clustering.similarity import normalized_mutual_information


def _points(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def _planted(clusters: int, each: int, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    labels = random.permutation(np.repeat(np.arange(clusters), each))
    centres = unit_rows(random.standard_normal((clusters, dim)))
    return centres[labels] + 0.02 * random.standard_normal((len(labels), dim)).astype(np.float32), labels


def _lloyd(x: np.ndarray, start: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    points, centroids = unit_rows(x), unit_rows(start)
    for _ in range(iterations):
        nearest = (points @ centroids.T).argmax(axis=1)
        centroids = unit_rows(np.stack([points[nearest == k].sum(axis=0) for k in range(len(centroids))]))
    return centroids, (points @ centroids.T).argmax(axis=1)


def test_lloyd_from_the_same_start() -> None:
    """2,000 points for 4 clusters: faiss's own default would have used 1,024 of them."""
    x = _points(2000, 8) * np.random.default_rng(1).uniform(0.1, 10, (2000, 1))
    start = _points(4, 8, seed=2)
    result = cluster(x, 4, iterations=7, seed=0, initial=start)
    centroids, assignment = _lloyd(x, start, 7)
    np.testing.assert_allclose(result.centroids, centroids, atol=1e-5)
    assert (result.assignment == assignment).mean() > 0.999
    assert result.objective == pytest.approx((unit_rows(x) * centroids[assignment]).sum(axis=1).mean(), abs=1e-5)
    assert result.repaired == 0


def test_faiss_from_the_same_start() -> None:
    x, start = unit_rows(_points(600, 12)), unit_rows(_points(30, 12, seed=2))
    plain = faiss.Kmeans(12, 30, niter=10, spherical=True, max_points_per_centroid=10**6)
    plain.train(x, init_centroids=start)
    result = cluster(x, 30, seed=0, initial=start)
    np.testing.assert_allclose(result.centroids, plain.centroids, atol=1e-6)
    assert np.array_equal(result.assignment, plain.index.search(x, 1)[1][:, 0])


def test_the_block_size_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _points(500, 16)
    whole = cluster(x, 20, seed=0)
    monkeypatch.setattr(points, "_EXACT_ROWS", 64)
    monkeypatch.setattr(partition, "_ROWS", 32)
    parts = cluster(x, 20, seed=0)
    assert np.array_equal(whole.assignment, parts.assignment)
    assert np.array_equal(whole.centroids, parts.centroids)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of the points is made, whatever their type: less than a third of their own size is used besides."""
    x = _points(20_000, 64).astype(np.float16)
    monkeypatch.setattr(points, "_EXACT_ROWS", 256)
    monkeypatch.setattr(partition, "_ROWS", 256)
    cluster(x[:100], 10, seed=0)  # imports what it needs
    tracemalloc.start()
    cluster(x, 10, seed=0, iterations=1, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 3 + 20 * len(x), f"{peak} bytes"  # labels, old and new, and two orders


def test_planted_clusters_are_found() -> None:
    x, labels = _planted(12, 20)
    first_members = np.array([np.flatnonzero(labels == k)[0] for k in range(12)])
    result = cluster(x, 12, seed=0, initial=x[first_members])
    assert normalized_mutual_information(result.assignment, labels) == pytest.approx(1.0)
    assert result.objective > 0.99


def test_same_bits_for_runs_threads_and_different_ones_for_seeds() -> None:
    x = _points(500, 16)
    first, again, two, other = (cluster(x, 20, seed=s, threads=t) for s, t in ((3, 1), (3, 1), (3, 2), (4, 1)))
    for result in (again, two):
        assert np.array_equal(first.centroids, result.centroids)
        assert np.array_equal(first.assignment, result.assignment)
        assert first.objective == result.objective
    assert not np.array_equal(first.assignment, other.assignment)


def test_thread_count_is_given_back() -> None:
    before = faiss.omp_get_max_threads()
    cluster(_points(20, 4), 2, seed=0, threads=before + 1)
    assert faiss.omp_get_max_threads() == before


def test_half_precision_points() -> None:
    x = unit_rows(_points(300, 16)).astype(np.float16)
    half, full = (cluster(points, 10, seed=0) for points in (x, x.astype(np.float32)))
    assert np.array_equal(half.assignment, full.assignment)


@pytest.mark.parametrize(("distinct", "count", "clusters"), [(1, 50, 20), (3, 40, 40), (7, 500, 100)])
def test_no_cluster_stays_empty(distinct: int, count: int, clusters: int) -> None:
    """Fewer distinct points than clusters: most clusters have to be made by splitting."""
    x = _points(distinct, 6)[np.arange(count) % distinct]
    result = cluster(x, clusters, seed=0)
    assert np.array_equal(np.unique(result.assignment), np.arange(clusters))
    assert result.repaired > 0
    np.testing.assert_allclose(np.linalg.norm(result.centroids, axis=1), 1, atol=1e-5)


def test_as_many_clusters_as_points() -> None:
    result = cluster(_points(9, 4), 9, seed=0)
    assert sorted(result.assignment.tolist()) == list(range(9))
    assert result.objective == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_clustered() -> None:
    with pytest.raises(ValueError, match="5 points cannot fill 6 clusters"):
        cluster(_points(5, 3), 6, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        cluster(np.full((5, 3), np.nan), 2, seed=0)
    with pytest.raises(ValueError, match=r"\(3, 3\), expected \(2, 3\)"):
        cluster(_points(5, 3), 2, seed=0, initial=_points(3, 3))
    with pytest.raises(ValueError, match="iterations"):
        cluster(_points(5, 3), 2, seed=0, iterations=0)


def test_cluster_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _points(700, 16)
    exact, fast, device = (cluster(x, 300, mode=m, device=d, iterations=1, seed=0) for m, d in CHOICES)
    part = Partition(x)
    lloyd_clusters(Coordinator.survey(LocalPartitions([part]), 300), iterations=1, seed=0, initial=None)
    assert np.array_equal(exact.assignment, part.labels)
    assert not np.array_equal(exact.assignment, fast.assignment)
    assert (exact.assignment == device.assignment).mean() > 0.99
    with pytest.raises(ValueError, match="mode must be exact or fast, got 'faster'"):
        cluster(x, 2, mode="faster", seed=0)  # type: ignore[arg-type]


CHOICES = (("exact", "cpu"), ("fast", "cpu"), ("exact", "cpu:0"))


def test_the_memory_starts_without_torch() -> None:
    code = "import sys, rayssl.runtime.memory.sending, rayssl.clustering.fast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

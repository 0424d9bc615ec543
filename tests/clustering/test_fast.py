"""Fast k-means against the exact one: objective, planted clusters, empty ones, threads, warm starts; and its parts."""

from __future__ import annotations

import numpy as np
import pytest

from rayssl.bench.kmeans import KMeansCase, points
from rayssl.clustering import fast, partition
from rayssl.clustering import points as point_sums
from rayssl.clustering.codes import CodedCentroids
from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.kmeans import cluster
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.points import directions, unit_rows
from rayssl.clustering.relocation import relocate_clusters
from rayssl.clustering.similarity import normalized_mutual_information

PLANTED = KMeansCase(12_000, 64, 300)


@pytest.mark.parametrize("spread", [1.0, *(pytest.param(spread, marks=pytest.mark.long) for spread in (0.5, 2.0))])
def test_planted_clusters(spread: float) -> None:
    """Points at cosines of about 0.9, 0.7 and 0.45 to their centres: as good as the exact mode by either measure."""
    x, labels = points(KMeansCase(10_000, 128, 260, spread=spread))
    exact, fast = cluster(x, 260, seed=0), cluster(x, 260, mode="fast", seed=0)
    assert fast.objective > 0.995 * exact.objective
    exact_nmi, nmi = (normalized_mutual_information(found.assignment, labels) for found in (exact, fast))
    assert nmi > exact_nmi - 0.005
    if spread <= 1:
        assert nmi > 0.99


def test_noise() -> None:
    x, _ = points(KMeansCase(12_000, 64, 300, data="noise"))
    assert cluster(x, 300, mode="fast", seed=0).objective > 0.985 * cluster(x, 300, seed=0).objective


def test_what_is_returned_fits_together() -> None:
    x, _ = points(PLANTED)
    found = cluster(x, 300, mode="fast", seed=0)
    rows = unit_rows(x)
    assert found.assignment.dtype == np.int32
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    assert found.objective == pytest.approx((rows * found.centroids[found.assignment]).sum(axis=1).mean(), abs=1e-5)
    assert (found.assignment == (rows @ found.centroids.T).argmax(axis=1)).mean() > 0.99
    assert np.array_equal(np.unique(found.assignment), np.arange(300))


def test_all_threads_work_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on BLAS's own threads, which reaches OpenMP, once halved what was started under it."""
    pool, counts = point_sums._pool, []
    for module in (fast, partition):
        monkeypatch.setattr(module, "all_threads", lambda: 3)
    monkeypatch.setattr(point_sums, "_pool", lambda count, process: counts.append(count) or pool(count, process))
    cluster(points(PLANTED)[0], 300, mode="fast", seed=0, iterations=1)
    assert set(counts) == {3}


def test_same_bits_for_runs_threads_and_different_ones_for_seeds() -> None:
    x, _ = points(KMeansCase(12_000, 32, 300))
    choices = ((3, 1), (3, 1), (3, 3), ([4, 1], 1))
    first, again, three, other = (cluster(x, 300, mode="fast", seed=s, threads=t, iterations=2) for s, t in choices)
    for result in (again, three):
        assert np.array_equal(first.centroids, result.centroids)
        assert np.array_equal(first.assignment, result.assignment)
        assert first.objective == result.objective
    assert not np.array_equal(first.assignment, other.assignment)


def test_warm_start_continues_from_the_last_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = points(PLANTED)
    last = cluster(x, 300, mode="fast", seed=0)
    moved = x + 0.02 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float16)
    monkeypatch.setattr(fast, "_SAMPLE", 0)  # would draw none
    warm = cluster(moved, 300, mode="fast", seed=1, initial=last.centroids, iterations=1)
    assert normalized_mutual_information(warm.assignment, labels) > 0.99
    assert (warm.assignment == last.assignment).mean() > 0.95, "most clusters keep their numbers"
    with pytest.raises(ValueError, match="initial centroids have shape"):
        cluster(x, 300, mode="fast", seed=0, initial=last.centroids[:, :-1])


@pytest.mark.parametrize(("distinct", "count"), [(1, 900), (3, 900), (40, 9000)])
def test_no_cluster_stays_empty(distinct: int, count: int) -> None:
    x = np.random.default_rng(0).standard_normal((distinct, 24)).astype(np.float32)[np.arange(count) % distinct]
    found = cluster(x, 300, mode="fast", seed=0)
    assert np.array_equal(np.unique(found.assignment), np.arange(300))
    assert found.objective == pytest.approx(1, abs=1e-3)


def test_rows_of_zeros_do_no_harm() -> None:
    x, labels = points(PLANTED)
    x[::100] = 0
    found = cluster(x, 300, mode="fast", seed=0)
    assert np.isfinite(found.centroids).all()
    there = np.arange(len(x)) % 100 > 0
    assert normalized_mutual_information(found.assignment[there], labels[there]) > 0.98


def test_few_clusters_are_exact() -> None:
    x, _ = points(KMeansCase(2000, 24, 30))
    assert np.array_equal(cluster(x, 30, mode="fast", seed=0).centroids, cluster(x, 30, seed=0).centroids)


def test_what_cannot_be_clustered() -> None:
    with pytest.raises(ValueError, match="299 points cannot fill 300 clusters"):
        cluster(np.ones((299, 32), dtype=np.float32), 300, mode="fast", seed=0)
    with pytest.raises(ValueError, match="not finite"):
        cluster(np.full((400, 32), np.inf, dtype=np.float16), 300, mode="fast", seed=0)


@pytest.mark.parametrize("dim", [16, 67, 300])
def test_searches_of_codes_find_nearly_the_best(dim: int) -> None:
    x, _ = points(KMeansCase(4000, dim, 1000))
    rows, centroids = unit_rows(x[1000:]), unit_rows(x[:1000])
    coded = CodedCentroids.train(centroids, np.random.default_rng(0))
    labels, cosines = coded.nearest(rows)
    np.testing.assert_allclose(cosines, (rows * centroids[labels]).sum(axis=1), atol=1e-5)
    best = (rows @ centroids.T).max(axis=1)
    assert cosines.sum() > 0.95 * best.sum()
    again = CodedCentroids(centroids, *coded.arrays())
    for count in (1, 3, 500):  # elsewhere, and whatever else is searched for at the same time
        assert np.array_equal(again.nearest(rows[:count])[0], labels[:count])
    coded.encode(centroids[::-1].copy())
    assert (999 - coded.nearest(rows)[0] == labels).mean() > 0.95  # equal codes come in another order


def _labelled(x: np.ndarray, labels: np.ndarray, clusters: int) -> tuple[Coordinator, Partition]:
    part = Partition(x)
    coordinator = Coordinator.survey(LocalPartitions([part]), clusters)
    part.labels[:] = labels
    return coordinator, part


def test_a_cluster_is_relocated_to_where_one_is_missing() -> None:
    """Of four groups the first has two centroids and the last two share one."""
    random = np.random.default_rng(0)
    groups = unit_rows(random.standard_normal((4, 16)))
    truth = np.repeat(np.arange(4), 50)
    x = unit_rows(groups[truth] + 0.05 * random.standard_normal((200, 16)))
    labels = np.where(truth == 0, np.arange(200) % 2, np.minimum(truth + 1, 3)).astype(np.int32)
    coordinator, part = _labelled(x, labels, 4)
    centroids = directions(coordinator.sums(), np.zeros((4, 16), dtype=np.float32))
    near = np.array([[1, 2], [0, 2], [3, 1], [2, 1]])
    assert relocate_clusters(coordinator, coordinator.sums(), centroids, near) == 1
    assert np.unique(part.labels).size == 3, "one of the two is empty, until the points are labelled anew"
    found = (x @ centroids.T).argmax(axis=1)
    assert normalized_mutual_information(found, truth) == pytest.approx(1.0)


def test_noise_and_finished_clusterings_are_left_alone() -> None:
    for job in (KMeansCase(3000, 64, 300, data="noise"), KMeansCase(3000, 64, 300, spread=0.5)):
        x, labels = points(job)
        labels = cluster(x, 300, seed=0).assignment if job.data == "noise" else labels
        coordinator, _ = _labelled(x, labels, 300)
        centroids = directions(coordinator.sums(), unit_rows(x[:300]))
        near = np.argsort(-(centroids @ centroids.T), axis=1)[:, :8]
        before = centroids.copy()
        assert relocate_clusters(coordinator, coordinator.sums(), centroids, near) == 0
        assert np.array_equal(before, centroids)

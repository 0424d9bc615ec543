"""Spherical k-means on the CPU (faiss): seeded, nothing subsampled, no empty cluster; and NMI to judge it by."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayssl.memory.bank import unit_rows


def load_faiss() -> Any:
    """faiss, imported when first needed (it takes a second) and without its log lines about CPU variants."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


@dataclass(frozen=True)
class KMeans:
    """A clustering of n points.

    ``centroids [K, D]`` float32 of norm 1; ``assignment [n]`` int32 in 0..K-1, the nearest centroid by cosine except
    for points moved by the repair; ``objective`` the mean cosine to the own centroid, -1..1; ``repaired`` how many
    clusters had been empty.
    """

    centroids: np.ndarray
    assignment: np.ndarray
    objective: float
    repaired: int


def spherical_kmeans(
    x: np.ndarray,
    clusters: int,
    *,
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
    threads: int | None = None,
) -> KMeans:
    """Lloyd's iterations by cosine on ``x [n, D]`` (normalised here; float16 or float32), K = ``clusters``.

    Starts from ``initial [K, D]``, else from K distinct points drawn with ``seed``. Every cluster is non-empty on
    return: an empty one takes half of the largest. The same call gives the same bits whatever ``threads`` is (default:
    faiss's own number). Raises ValueError when n < K or a value is not finite. Needs 4 n D bytes besides ``x``.
    """
    if len(x) < clusters:
        raise ValueError(f"{len(x)} points cannot fill {clusters} clusters; remember more references or lower clusters")
    if clusters < 1 or iterations < 1:
        raise ValueError(f"clusters and iterations must be at least 1, got {clusters} and {iterations}")
    points = unit_rows(x)
    if not np.isfinite(points).all():
        raise ValueError("points for k-means hold values that are not finite")
    if initial is None:
        start = points[np.random.default_rng(seed).choice(len(points), clusters, replace=False)]
    elif initial.shape == (clusters, points.shape[1]):
        start = unit_rows(initial)
    else:
        raise ValueError(f"initial centroids have shape {initial.shape}, expected {(clusters, points.shape[1])}")
    with _threads(threads):
        run = load_faiss().Kmeans(
            points.shape[1],
            clusters,
            niter=iterations,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=len(points),  # faiss's own bound of 256 would subsample without a word
        )
        run.train(points, init_centroids=start)
        centroids = unit_rows(np.asarray(run.centroids))
        assignment = (
            load_faiss().knn(points, centroids, 1, metric=load_faiss().METRIC_INNER_PRODUCT)[1][:, 0].astype(np.int32)
        )
    repaired = _fill_empty(points, assignment, centroids)
    return KMeans(centroids, assignment, _mean_cosine(points, assignment, centroids), repaired)


def nearest_centroids(centroids: np.ndarray, count: int) -> np.ndarray:
    """For each of ``centroids [K, D]`` the ``count`` others nearest by cosine, nearest first: int32 ``[K, count]``.

    Raises ValueError unless ``count < K``.
    """
    if count >= len(centroids):
        raise ValueError(f"neighbours {count} must be fewer than clusters {len(centroids)}")
    nearest = np.empty((len(centroids), count), dtype=np.int32)
    for start in range(0, len(centroids), 512):  # all K * K similarities at once would take 2.5 GB at K = 25,000
        similarity = centroids[start : start + 512] @ centroids.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + 512] = most_similar(similarity, count)
    return nearest


def most_similar(similarity: np.ndarray, count: int) -> np.ndarray:
    """Columns of the ``count`` largest values in each row of ``similarity [B, n]``, largest first: ``[B, count]``.

    A partition by NumPy and its matrix product take a fifth of the time of ``load_faiss().knn`` for more than one
    neighbour.
    """
    columns = np.argpartition(similarity, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(similarity, columns, axis=1), axis=1, kind="stable")
    largest: np.ndarray = np.take_along_axis(columns, order, axis=1)
    return largest


def normalized_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """NMI of two labellings ``[n]`` of the same points: I(a;b) / mean(H(a), H(b)), 0..1; two constant ones give 1."""
    first, second = (np.unique(labels, return_inverse=True)[1] for labels in (a, b))
    joint = first.astype(np.int64) * (int(second.max(initial=0)) + 1) + second
    entropies = [_entropy(np.unique(labels, return_counts=True)[1]) for labels in (first, second, joint)]
    mean = (entropies[0] + entropies[1]) / 2
    return 1.0 if mean == 0 else float(np.clip((2 * mean - entropies[2]) / mean, 0.0, 1.0))


def _entropy(counts: np.ndarray) -> float:
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def _fill_empty(points: np.ndarray, assignment: np.ndarray, centroids: np.ndarray) -> int:
    """Gives each empty cluster half of the then largest one, in place; returns how many there were.

    The half that leaves is the one towards the member farthest from the centroid. Halving, rather than moving a single
    outlier, keeps a collapsed clustering (nearly all points in one) at N log K work.
    """
    sizes = np.bincount(assignment, minlength=len(centroids))
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return 0
    order = np.argsort(assignment, kind="stable")
    members = dict(enumerate(np.split(order, np.cumsum(sizes)[:-1])))
    largest = [(-int(size), cluster) for cluster, size in enumerate(sizes) if size > 1]
    heapq.heapify(largest)
    for target in empty.tolist():
        source = heapq.heappop(largest)[1]
        group = members[source]
        rows = points[group]
        outlier = rows[np.argmin(rows @ centroids[source])]
        ranked = np.argsort(rows @ (centroids[source] - outlier), kind="stable")
        half = len(group) // 2
        for cluster, part in ((target, np.sort(group[ranked[:half]])), (source, np.sort(group[ranked[half:]]))):
            members[cluster] = part
            assignment[part] = cluster
            mean = points[part].mean(axis=0)
            centroids[cluster] = unit_rows((mean if mean.any() else points[part[0]])[None])[0]
            if len(part) > 1:
                heapq.heappush(largest, (-len(part), cluster))
    return len(empty)


def _mean_cosine(points: np.ndarray, assignment: np.ndarray, centroids: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(points), 65536):  # the centroid of every point at once would double the memory
        part = slice(start, start + 65536)
        total += float(np.einsum("nd,nd->", points[part], centroids[assignment[part]], dtype=np.float64))
    return total / len(points)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = load_faiss().omp_get_max_threads()
    if count is not None:
        load_faiss().omp_set_num_threads(count)
    try:
        yield
    finally:
        load_faiss().omp_set_num_threads(before)

"""Spherical k-means: seeded, nothing subsampled, no empty cluster; exact on the CPU (faiss); and NMI to judge it by.

`cluster` chooses between this file's Lloyd, the fast one of `rayssl.memory.kmeans_fast` and a GPU's
(`rayssl.memory.kmeans_torch`). All of them hold the points once, as they are given, and a block of rows besides.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rayssl.memory.bank import unit_rows

Mode = Literal["exact", "fast"]
_ROWS = 16384  # of one block: at D = 512 it takes 32 MB as float32


def load_faiss() -> Any:
    """faiss, imported when first needed (it takes a second) and without its log lines about CPU variants."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


@dataclass(frozen=True)
class KMeans:
    """A clustering of n points.

    ``centroids [K, D]`` float32 of norm 1; ``assignment [n]`` int32 in 0..K-1, the nearest centroid by cosine except
    for points moved by the repair (and, from the fast mode, for the few whose nearest was not looked at);
    ``objective`` the mean cosine to the own centroid, -1..1; ``repaired`` how many clusters had been empty at the end.
    """

    centroids: np.ndarray
    assignment: np.ndarray
    objective: float
    repaired: int


def cluster(
    x: np.ndarray,
    clusters: int,
    *,
    mode: Mode = "exact",
    device: str = "cpu",
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
    threads: int | None = None,
) -> KMeans:
    """Clusters ``x [n, D]`` by cosine into K = ``clusters``; the parameters are those of `spherical_kmeans`.

    On the device "cpu" the mode "exact" is `spherical_kmeans` and "fast" `rayssl.memory.kmeans_fast.fast_kmeans`. On
    any other, a name that torch knows, both are exact Lloyd, with products in TF32 ("exact") or bfloat16 ("fast").
    """
    if mode not in ("exact", "fast"):
        raise ValueError(f"mode must be exact or fast, got {mode!r}")
    if device != "cpu":
        from rayssl.memory.kmeans_torch import torch_kmeans  # here alone: this package starts without torch

        precision: Literal["tf32", "bfloat16"] = "tf32" if mode == "exact" else "bfloat16"
        return torch_kmeans(
            x, clusters, device=device, precision=precision, iterations=iterations, seed=seed, initial=initial
        )
    if mode == "fast":
        from rayssl.memory.kmeans_fast import fast_kmeans

        return fast_kmeans(x, clusters, iterations=iterations, seed=seed, initial=initial, threads=threads)
    return spherical_kmeans(x, clusters, iterations=iterations, seed=seed, initial=initial, threads=threads)


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

    Starts from ``initial [K, D]``, else from K distinct points drawn with ``seed``; ends early where nothing moves any
    more. Every cluster is non-empty in each iteration and on return: an empty one takes half of the largest. The same
    call gives the same bits whatever ``threads`` is (default: faiss's own number). Raises ValueError when n < K or a
    value is not finite. Needs 12 K D bytes and some blocks of rows besides ``x``.
    """
    check_points(x, clusters, iterations)
    centroids = first_centroids(x, clusters, seed, initial)
    with faiss_threads(threads):
        assignment = assign(x, centroids)
        for _ in range(iterations):
            fill_empty(x, assignment, centroids)
            centroids = directions(cluster_sums(x, assignment, clusters), centroids)
            before, assignment = assignment, assign(x, centroids)
            if np.array_equal(before, assignment):
                break
    repaired = fill_empty(x, assignment, centroids)
    return KMeans(centroids, assignment, mean_cosine(x, assignment, centroids), repaired)


def check_points(x: np.ndarray, clusters: int, iterations: int) -> None:
    """Raises ValueError where ``x [n, D]`` cannot be clustered."""
    if len(x) < clusters:
        raise ValueError(f"{len(x)} points cannot fill {clusters} clusters; remember more references or lower clusters")
    if clusters < 1 or iterations < 1:
        raise ValueError(f"clusters and iterations must be at least 1, got {clusters} and {iterations}")
    if not all(np.isfinite(block).all() for _, block in _blocks(x)):
        raise ValueError("points for k-means hold values that are not finite")


def first_centroids(x: np.ndarray, clusters: int, seed: int | list[int], initial: np.ndarray | None) -> np.ndarray:
    """``[K, D]`` float32 of norm 1 to start from: ``initial``, else K distinct rows of ``x [n, D]``."""
    if initial is None:
        return unit_rows(x[np.random.default_rng(seed).choice(len(x), clusters, replace=False)])
    if initial.shape != (clusters, x.shape[1]):
        raise ValueError(f"initial centroids have shape {initial.shape}, expected {(clusters, x.shape[1])}")
    return unit_rows(initial)


def assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest of ``centroids [K, D]`` (of norm 1) for each row of ``x [n, D]``: int32 ``[n]``."""
    faiss = load_faiss()
    nearest = np.empty(len(x), dtype=np.int32)
    for part, block in _blocks(x):
        nearest[part] = faiss.knn(unit_rows(block), centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]
    return nearest


def cluster_sums(x: np.ndarray, assignment: np.ndarray, clusters: int) -> np.ndarray:
    """The sum of the normalised rows of ``x [n, D]`` in each cluster, float64 ``[K, D]``.

    What several holders of parts of ``x`` find adds up to what one of all would, but for float64's rounding.
    """
    sums = np.zeros((clusters, x.shape[1]))
    for part, block in _blocks(x):
        present, found = partial_sums(unit_rows(block), assignment[part])
        sums[present] += found
    return sums


def partial_sums(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ``labels [n]``, ascending, and the sum of the ``rows [n, D]`` of each: float64 ``[distinct, D]``."""
    from scipy.sparse import csr_matrix  # NumPy's own reductions over runs of rows take twenty times as long

    present, place = np.unique(labels, return_inverse=True)
    members = csr_matrix((np.ones(len(labels)), (place, np.arange(len(labels)))), shape=(len(present), len(labels)))
    return present, members @ rows


def directions(sums: np.ndarray, before: np.ndarray) -> np.ndarray:
    """``sums [K, D]`` scaled to norm 1, float32; where a sum is zero, the row of ``before`` stays."""
    found = unit_rows(sums)
    nothing = ~found.any(axis=1)
    found[nothing] = before[nothing]
    return found


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


def fill_empty(x: np.ndarray, assignment: np.ndarray, centroids: np.ndarray) -> int:
    """Gives each empty cluster half of the then largest one, in place; returns how many there were. ``x [n, D]``.

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
        rows = unit_rows(x[group])
        outlier = rows[np.argmin(rows @ centroids[source])]
        ranked = np.argsort(rows @ (centroids[source] - outlier), kind="stable")
        half = len(group) // 2
        for cluster, place in ((target, np.sort(ranked[:half])), (source, np.sort(ranked[half:]))):
            members[cluster] = part = group[place]
            assignment[part] = cluster
            mean = rows[place].mean(axis=0)
            centroids[cluster] = unit_rows((mean if mean.any() else rows[place[0]])[None])[0]
            if len(part) > 1:
                heapq.heappush(largest, (-len(part), cluster))
    return len(empty)


def mean_cosine(x: np.ndarray, assignment: np.ndarray, centroids: np.ndarray) -> float:
    """The mean cosine between the rows of ``x [n, D]`` and their own centroids."""
    total = 0.0
    for part, block in _blocks(x):
        total += float(np.einsum("nd,nd->", unit_rows(block), centroids[assignment[part]], dtype=np.float64))
    return total / len(x)


def _blocks(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        yield part, x[part]


@contextmanager
def faiss_threads(count: int | None) -> Iterator[None]:
    """faiss with ``count`` threads, None for as many as it has anyway."""
    before = load_faiss().omp_get_max_threads()
    if count is not None:
        load_faiss().omp_set_num_threads(count)
    try:
        yield
    finally:
        load_faiss().omp_set_num_threads(before)

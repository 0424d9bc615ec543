"""Spherical k-means: seeded, nothing subsampled, no empty cluster; exact on the CPU (faiss); and NMI to judge it by.

`cluster` chooses between this file's Lloyd, the fast one of `rayssl.clustering.fast` and a GPU's
(`rayssl.clustering.gpu`). All of them hold the points once, as they are given, and a block of rows besides; or
in parts, wherever these are (`cluster_parts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.partitions import LocalPartitions, Partition, Partitions
from rayssl.clustering.points import directions, unit_rows

Mode = Literal["exact", "fast"]


@dataclass(frozen=True)
class Clusters:
    """K clusters: ``centroids [K, D]`` float32 of norm 1; the rest as in `KMeans`."""

    centroids: np.ndarray
    objective: float
    repaired: int


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

    On the device "cpu" the mode "exact" is `spherical_kmeans` and "fast" `rayssl.clustering.fast.fast_kmeans`. On
    any other, a name that torch knows, both are exact Lloyd, with products in TF32 ("exact") or bfloat16 ("fast").
    """
    part = part_on(device, x, mode=mode, threads=threads)
    mode = mode if device == "cpu" else "exact"
    return one_part(part, clusters, mode=mode, iterations=iterations, seed=seed, initial=initial, threads=threads)


def part_on(device: str, x: np.ndarray, *, mode: Mode = "exact", threads: int | None = None) -> Partition:
    """The points ``x [n, D]`` as a part of those that `cluster_parts` clusters, at work on ``device``."""
    _check_mode(mode)
    if device == "cpu":
        return Partition(x, threads=threads)
    from rayssl.clustering.gpu import TorchPartition  # here alone: this package starts without torch

    return TorchPartition(x, device=device, precision="tf32" if mode == "exact" else "bfloat16", threads=threads)


def cluster_parts(
    ask: Partitions,
    clusters: int,
    *,
    mode: Mode = "exact",
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
    threads: int | None = None,
) -> Clusters:
    """Clusters the points of all the parts that ``ask`` reaches, as `cluster` would if one held them all.

    With parts on a GPU (`part_on`) the mode is "exact", whatever their products' is. The labels stay with the parts:
    ``ask("assignment")``. What is asked and answered in an iteration is a few times K D numbers, and every draw is made
    here, so that it means nothing how many parts there are: sums are exact, and only products with centroids may
    differ in their last bit with the shape of what is multiplied. Needs 40 K D bytes, and up to 256 MB of answers.
    Raises ValueError as `spherical_kmeans` does, and where the parts' dimensions differ.
    """
    from rayssl.clustering import fast

    _check_mode(mode)
    if clusters < 1 or iterations < 1:
        raise ValueError(f"clusters and iterations must be at least 1, got {clusters} and {iterations}")
    whole = Coordinator.survey(ask, clusters)
    if mode == "fast" and not fast.is_exact(clusters, whole.dim):
        return fast.fast_clusters(whole, iterations=iterations, seed=seed, initial=initial, threads=threads)
    centroids = first_centroids(whole, seed, initial)
    ask("assign", centroids)
    for _ in range(iterations):
        whole.fill_empty(centroids)
        centroids = directions(whole.sums(), centroids)
        if not any(ask("assign", centroids)):
            break
    repaired = whole.fill_empty(centroids)
    return Clusters(centroids, whole.mean_cosine(centroids), repaired)


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
    value is not finite. Needs 20 K D + 24 n bytes and some blocks of rows besides ``x``.
    """
    part = Partition(x, threads=threads)
    return one_part(part, clusters, mode="exact", iterations=iterations, seed=seed, initial=initial, threads=threads)


def one_part(
    part: Partition,
    clusters: int,
    *,
    mode: Mode,
    iterations: int,
    seed: int | list[int],
    initial: np.ndarray | None,
    threads: int | None,
) -> KMeans:
    """`cluster_parts` where one part holds all points."""
    found = cluster_parts(
        LocalPartitions([part]), clusters, mode=mode, iterations=iterations, seed=seed, initial=initial, threads=threads
    )
    return KMeans(found.centroids, part.labels, found.objective, found.repaired)


def first_centroids(whole: Coordinator, seed: int | list[int], initial: np.ndarray | None) -> np.ndarray:
    """``[K, D]`` float32 of norm 1 to start from: ``initial``, else K distinct points."""
    if initial is None:
        return whole.gather(np.random.default_rng(seed).choice(whole.rows, whole.clusters, replace=False))
    if initial.shape != (whole.clusters, whole.dim):
        raise ValueError(f"initial centroids have shape {initial.shape}, expected {(whole.clusters, whole.dim)}")
    return unit_rows(initial)


def _check_mode(mode: str) -> None:
    if mode not in ("exact", "fast"):
        raise ValueError(f"mode must be exact or fast, got {mode!r}")


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

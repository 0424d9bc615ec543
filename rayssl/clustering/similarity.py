"""How alike things are: centroids to each other, rows of a matrix of similarities, and two labellings (NMI)."""

from __future__ import annotations

import numpy as np


def nearest_centroids(centroids: np.ndarray, count: int, first: int = 0, last: int | None = None) -> np.ndarray:
    """For each of ``centroids [K, D]`` the ``count`` others nearest by cosine, nearest first: int32 ``[K, count]``.

    ``first, last``: for the centroids first..last-1 only. Raises ValueError unless ``count < K``.
    """
    last = len(centroids) if last is None else last
    if count >= len(centroids):
        raise ValueError(f"neighbours {count} must be fewer than clusters {len(centroids)}")
    nearest = np.empty((last - first, count), dtype=np.int32)
    for start in range(first, last, 512):  # all K * K similarities at once would take 2.5 GB at K = 25,000
        similarity = centroids[start : min(start + 512, last)] @ centroids.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        nearest[start - first : start - first + 512] = most_similar(similarity, count)
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

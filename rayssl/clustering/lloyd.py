"""Lloyd's iterations by cosine, exact: every point is compared with every centroid in each iteration."""

from __future__ import annotations

import numpy as np

from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.partition import Partition
from rayssl.clustering.points import directions, unit_rows
from rayssl.clustering.result import Clusters


def lloyd_clusters(
    coordinator: Coordinator, *, iterations: int, seed: int | list[int], initial: np.ndarray | None
) -> Clusters:
    """At most ``iterations`` of them, fewer where no label changes any more; the parts keep the labels.

    Starts as `first_centroids` says. Every cluster is non-empty in each iteration and on return: an empty one takes
    half of the largest.
    """
    if coordinator.parts == 1:
        start = first_positions(coordinator, seed) if initial is None else first_centroids(coordinator, seed, initial)
        alone = coordinator.partitions.every(Partition.lloyd, start, iterations)[0]
        if alone is not None:
            return alone
    centroids = first_centroids(coordinator, seed, initial)
    coordinator.partitions.every(Partition.assign, centroids)
    for _ in range(iterations):
        coordinator.fill_empty(centroids)
        centroids = directions(coordinator.sums(), centroids)
        if not any(coordinator.partitions.every(Partition.assign, centroids)):
            break
    repaired = coordinator.fill_empty(centroids)
    return Clusters(centroids, coordinator.mean_cosine(centroids), repaired)


def first_centroids(coordinator: Coordinator, seed: int | list[int], initial: np.ndarray | None) -> np.ndarray:
    """``[K, D]`` float32 of norm 1 to start from: ``initial``, else K distinct points drawn with ``seed``.

    Raises ValueError where ``initial`` has another shape.
    """
    if initial is None:
        return coordinator.gather(first_positions(coordinator, seed))
    if initial.shape != (coordinator.clusters, coordinator.dim):
        raise ValueError(
            f"initial centroids have shape {initial.shape}, expected {(coordinator.clusters, coordinator.dim)}"
        )
    return unit_rows(initial)


def first_positions(coordinator: Coordinator, seed: int | list[int]) -> np.ndarray:
    """The positions of K distinct points, drawn with ``seed``: int64 ``[K]``."""
    return np.random.default_rng(seed).choice(coordinator.rows, coordinator.clusters, replace=False)

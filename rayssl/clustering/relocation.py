"""Relocation: a cluster is taken from where it is not needed to where one is missing. Lloyd's iterations cannot do it.

A cluster's part in the objective is the norm of the sum of its points. Two clusters that become one lose the difference
between their two norms and that of their sum; one that becomes two gains the same for its halves.
"""

from __future__ import annotations

import numpy as np

from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.partition import Partition
from rayssl.clustering.points import unit_rows

_MARGIN = 1.2  # gain over loss that a relocation must promise, as halves of noise gain something too


def relocate_clusters(coordinator: Coordinator, sums: np.ndarray, centroids: np.ndarray, near: np.ndarray) -> int:
    """Joins pairs of clusters and halves others, wherever the second gains more than the first loses.

    ``sums, centroids [K, D]`` are those of the clusters as the points are labelled. A cluster may be joined to one of
    those in its row of ``near [K, m]``. Changes the labels of joined clusters, and ``centroids`` in place. No cluster
    takes part twice. Returns the number of relocations.
    """
    sizes = coordinator.sizes()
    counts = sizes.sum(axis=0)
    norms = np.linalg.norm(sums, axis=1)
    losses, partners = _losses(norms, centroids, near)
    losses[counts == 0] = 0.0
    # a half's norm is at most its size, so the gain at most this
    most = np.where(counts >= 4, counts - norms, 0.0)
    halved = np.argsort(-most, kind="stable")[: max(1, len(sums) // 4)]
    halved = halved[counts[halved] >= 4]
    gains, halves = _halve(coordinator, halved, sizes, sums, centroids)
    relocations = _match(losses, partners, counts, halved, gains)
    table = np.arange(len(sums), dtype=np.int32)
    for source, partner, place in relocations:
        if counts[source]:
            joined = sums[source] + sums[partner]
            centroids[partner] = unit_rows((joined if joined.any() else centroids[partner])[None])[0]
            table[source] = partner
        centroids[[halved[place], source]] = unit_rows(halves[place])
    if relocations:
        coordinator.partitions.every(Partition.relabel, table)
    return len(relocations)


def _halve(
    coordinator: Coordinator, halved: np.ndarray, sizes: np.ndarray, sums: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two-means in each of the clusters ``halved [S]``, from its outlier and its centroid, on some of its members.

    Returns the gain of each halving ``[S]``, 0 where all members stay together, and the sums of both halves
    ``[S, 2, D]``.
    """
    gains, halves = np.zeros(len(halved)), np.zeros((len(halved), 2, coordinator.dim))
    counts = sizes.sum(axis=0)
    for part, strides in coordinator.held(halved, sizes):
        clusters = halved[part]
        some = -(-counts[clusters] // strides)
        total = sums[clusters]
        if (strides > 1).any():
            total = np.where((strides > 1)[:, None], coordinator.held_sums(len(clusters)), total)
        first, both = _two_means(coordinator, centroids[clusters], total)
        gain = np.linalg.norm(both, axis=2).sum(axis=1) - np.linalg.norm(total, axis=1)
        gains[part] = np.where((first > 0) & (first < some), gain * counts[clusters] / some, 0.0)
        halves[part] = both
    return gains, halves


def _two_means(coordinator: Coordinator, centroids: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the members that the parts hold: how many are in the first half ``[S]``, and both halves' sums ``[S, 2, D]``.

    ``total [S, D]``: the sums of them all.
    """
    first = np.zeros(len(total), dtype=np.int64)
    both = np.stack([np.zeros_like(total), total], axis=1)
    towards = coordinator.farthest_held(centroids) - centroids
    for _ in range(4):
        turned = False
        for count, difference in coordinator.partitions.every(Partition.lean, towards):
            first += count
            both[:, 0] += difference
            turned = turned or bool(difference.any())
        both[:, 1] = total - both[:, 0]
        if not turned:
            break
        norms = np.linalg.norm(both, axis=2)
        two = norms.all(axis=1)
        a, b = np.moveaxis(both[two] / norms[two][:, :, None], 1, 0)
        towards[two] = a - b
    return first, both


def _losses(norms: np.ndarray, centroids: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of the best joining of each cluster with one of its ``near [K, m]``, and that partner: both ``[K]``."""
    least = np.empty(len(near))
    partners = np.empty(len(near), dtype=np.int64)
    for start in range(0, len(near), 1024):
        part = np.arange(start, min(start + 1024, len(near)))
        others = near[part]
        cosines = np.einsum("kd,kmd->km", centroids[part], centroids[others], dtype=np.float64)
        a, b = norms[part][:, None], norms[others]
        losses = a + b - np.sqrt(np.maximum(a * a + b * b + 2 * a * b * cosines, 0.0))
        losses[others == part[:, None]] = np.inf
        best = losses.argmin(axis=1)
        least[part], partners[part] = losses[np.arange(len(part)), best], others[np.arange(len(part)), best]
    return least, partners


def _match(
    losses: np.ndarray, partners: np.ndarray, counts: np.ndarray, halved: np.ndarray, gains: np.ndarray
) -> list[tuple[int, int, int]]:
    """(cluster to relocate, cluster it joins, place in ``halved`` of the one it halves): least loss with most gain."""
    relocations: list[tuple[int, int, int]] = []
    used = np.zeros(len(losses), dtype=bool)
    waiting = iter(np.argsort(-gains, kind="stable").tolist())
    for source in np.argsort(losses, kind="stable").tolist():
        partner = int(partners[source])
        if used[source] or (counts[source] and used[partner]):
            continue
        used[source] = True
        if counts[source]:
            used[partner] = True
        place = next((place for place in waiting if not used[halved[place]]), None)
        if place is None or gains[place] <= _MARGIN * losses[source]:
            break
        used[halved[place]] = True
        relocations.append((source, partner, place))
    return relocations

"""Spherical k-means: seeded, nothing subsampled, no empty cluster. This is the door to all kinds of it.

`cluster` takes the points of one process, `cluster_parts` those of any number of parts, wherever these are. Both choose
between Lloyd's iterations (`rayssl.clustering.lloyd`), the fast passes (`rayssl.clustering.fast`) and a GPU
(`rayssl.clustering.gpu`). The points are held once, as they are given, and some blocks of rows.
"""

from __future__ import annotations

import itertools

import numpy as np

from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.fast import fast_clusters
from rayssl.clustering.lloyd import lloyd_clusters
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions, Partitions
from rayssl.clustering.points import directions
from rayssl.clustering.result import Clusters, KMeans, Mode
from rayssl.clustering.ward import merge_table
from rayssl.clustering.whitening import Whitening

_EXACT_UP_TO = 256  # clusters: Lloyd's iterations are as quick
_CODED_FROM = 16  # dimensions: with fewer there are no codes


def cluster(
    x: np.ndarray,
    clusters: int,
    *,
    merged_from: int = 0,
    mode: Mode = "exact",
    device: str = "cpu",
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
    threads: int | None = None,
) -> KMeans:
    """Clusters ``x [n, D]`` by cosine into K = ``clusters``; the rows (float16 or float32) are normalised here.

    Starts from ``initial [K, D]``, else from K distinct points drawn with ``seed``. No cluster is empty on return: an
    empty one takes half of the largest. The same call gives the same bits whatever ``threads`` is (None: as many as
    faiss uses).

    ``merged_from``: so many smaller clusters are made first, at least K, and `rayssl.clustering.ward` merges them into
    K. 0 leaves it out. In the following, K is then ``merged_from``.

    "exact": at most ``iterations`` of Lloyd's. Needs 20 K D + 24 n bytes and some blocks of rows besides ``x``.
    "fast": at most ``iterations`` passes over all points, fewer where a pass gains less than 0.1 %; see
    `rayssl.clustering.fast`. Up to 256 clusters or 15 dimensions it is "exact". Needs a quarter of ``x``, 30 K D bytes
    and some blocks of rows besides ``x``.

    On any ``device`` but "cpu", a name that torch knows, both modes are Lloyd's, with products of float16, which has
    the ten bits of TF32; see `rayssl.clustering.gpu.partition.TorchPartition`.

    Raises ValueError when n < K, when a value is not finite, and for arguments that cannot be.
    """
    _check_mode(mode)
    partition = partition_on(device, x, threads=threads)
    mode = mode if device == "cpu" else "exact"
    found = cluster_parts(
        LocalPartitions([partition]),
        clusters,
        merged_from=merged_from,
        mode=mode,
        iterations=iterations,
        seed=seed,
        initial=initial,
        threads=threads,
    )
    return KMeans(found.centroids, partition.assignment(), found.objective, found.repaired)


def cluster_parts(
    partitions: Partitions,
    clusters: int,
    *,
    merged_from: int = 0,
    mode: Mode = "exact",
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
    threads: int | None = None,
) -> Clusters:
    """Clusters the points of all ``partitions``, as `cluster` would if one process held them all.

    With parts on a GPU (`partition_on`) the mode is "exact". The labels stay with the parts:
    ``partitions.every(Partition.assignment)``. An iteration sends and receives a few times K D numbers; a single part
    on a GPU keeps them there. How many parts there are changes nothing but the last bit of products with centroids,
    which may depend on the shape of what is multiplied, and on a GPU the last bit of centroids. ``threads`` are those
    of this process. Needs 40 K D bytes, and up to 256 MB of answers. With ``merged_from`` a part also compares
    clusters with all others: 256 at a time for each thread, 4,096 on a GPU, 8 bytes for each pair. Raises ValueError as
    `cluster` does, and where the dimensions of parts differ.
    """
    _check_mode(mode)
    if clusters < 1 or iterations < 1:
        raise ValueError(f"clusters and iterations must be at least 1, got {clusters} and {iterations}")
    if merged_from and merged_from < clusters:
        raise ValueError(f"merged_from must be 0 or at least clusters, got {merged_from} and {clusters}")
    coordinator = Coordinator.survey(partitions, merged_from or clusters)
    if mode == "fast" and not is_exact(coordinator.clusters, coordinator.dim):
        found = fast_clusters(coordinator, iterations=iterations, seed=seed, initial=initial, threads=threads)
    else:
        found = lloyd_clusters(coordinator, iterations=iterations, seed=seed, initial=initial)
    return _merged(coordinator, clusters, found) if merged_from else found


def _merged(coordinator: Coordinator, clusters: int, found: Clusters) -> Clusters:
    """``found`` merged into K = ``clusters`` by Ward's criterion. The parts keep the new labels."""

    def near(means: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bounds = np.arange(coordinator.parts + 1) * len(rows) // coordinator.parts
        asked = [(means, sizes, rows[first:last]) for first, last in itertools.pairwise(bounds.tolist())]
        nearest, costs = zip(*coordinator.partitions.each(Partition.near_merges, asked), strict=True)
        return np.concatenate(nearest), np.concatenate(costs)

    sums, sizes = coordinator.sums(), coordinator.sizes().sum(axis=0)
    table, suggested = merge_table(sums, sizes, clusters, near)
    coordinator.partitions.every(Partition.relabel, table)
    together = np.zeros((clusters, coordinator.dim))
    np.add.at(together, table, sums)
    centroids = directions(together, found.centroids[np.unique(table, return_index=True)[1]])
    objective = float((together * centroids).sum()) / coordinator.rows
    return Clusters(centroids, objective, found.repaired, suggested)


def is_exact(clusters: int, dim: int) -> bool:
    """Whether the fast mode is the exact one for K = ``clusters`` in D = ``dim``."""
    return clusters <= _EXACT_UP_TO or dim < _CODED_FROM


def partition_on(
    device: str, x: np.ndarray, *, threads: int | None = None, whitening: Whitening | None = None
) -> Partition:
    """The points ``x [n, D]`` as one of the parts of `cluster_parts`, at work on ``device``.

    On a GPU they are sent there now, and whitened there by ``whitening``, if any. On the CPU they are used where they
    are, so whiten them first.
    """
    if device == "cpu":
        assert whitening is None
        return Partition(x, threads=threads)
    from rayssl.clustering.gpu.partition import TorchPartition  # here alone: this package starts without torch

    return TorchPartition(x, device=device, threads=threads, whitening=whitening)


def nearest_centroids_by(partitions: Partitions, parts: int, centroids: np.ndarray, count: int) -> np.ndarray:
    """`rayssl.clustering.similarity.nearest_centroids`; each of ``parts`` answers for some of ``centroids [K, D]``."""
    if count >= len(centroids):
        raise ValueError(f"neighbours {count} must be fewer than clusters {len(centroids)}")
    bounds = np.arange(parts + 1) * len(centroids) // parts
    asked = [(centroids, count, int(first), int(last)) for first, last in itertools.pairwise(bounds)]
    return np.concatenate(partitions.each(Partition.near_centroids, asked))


def _check_mode(mode: str) -> None:
    if mode not in ("exact", "fast"):
        raise ValueError(f"mode must be exact or fast, got {mode!r}")

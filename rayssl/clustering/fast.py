"""Spherical k-means in a small part of Lloyd's time on the CPU, to about his objective or above it.

Four things make the difference; all are seeded, and give the same bits for any number of threads. The points may be
held in parts (`rayssl.clustering.partitions`); what is here holds numbers by cluster only.

- *Searches of codes.* Where a point may belong anywhere, all centroids are ranked by 4-bit product codes of their main
  256 dimensions, and the best few are compared exactly.
- *Near passes.* Once its cluster is about right, a point is compared with its own centroid and the 64 nearest to that.
  After each such pass a probe of points is compared with all centroids; where it has lost more than 0.1 % of its
  cosines, the points that lie far from their centroids, as far as the loss reaches, are searched for.
- *A start from a sample* of 10 points for each cluster, so that few passes over everything are left to do.
- *Moves*, which Lloyd's iterations lack: of two clusters that lose little by being one, one goes where a cluster gains
  more by being two. An empty cluster is the case that loses nothing.
"""

from __future__ import annotations

import numpy as np

from rayssl.clustering.codes import CodedCentroids
from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.kmeans import Clusters, KMeans, first_centroids, one_part
from rayssl.clustering.partitions import Partition
from rayssl.clustering.points import Workers, all_threads, blocks, directions, working
from rayssl.clustering.relocation import move_clusters

_EXACT_UP_TO = 256  # clusters: Lloyd is as quick
_SAMPLE = 10  # points for each cluster
_SAMPLE_PASSES = 3
_JOINABLE = 8  # centroids that a cluster may be joined to
_NEAR = 64  # centroids that a near pass looks at besides the own one
_PROBE = 2048  # points compared with all centroids after a near pass
_LOSS = 0.001  # of their cosine; more calls for a search
_GAIN = 0.001  # relative gain of a pass; less ends the iterations


def fast_kmeans(
    x: np.ndarray,
    clusters: int,
    *,
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
    threads: int | None = None,
) -> KMeans:
    """Approximate k-means by cosine on ``x [n, D]`` (normalised here; float16 or float32), K = ``clusters``.

    At most ``iterations`` passes over all points, fewer where a pass gains less than 0.1 %. Starts from
    ``initial [K, D]`` (the last centroids: then no sample is needed), else from K points drawn with ``seed``. Every
    cluster is non-empty on return. Up to 256 clusters or 15 dimensions it is `spherical_kmeans`. Raises ValueError
    when n < K or a value is not finite. Needs a quarter of ``x``, 30 K D bytes and some blocks of rows besides ``x``.
    """
    part = Partition(x, threads=threads)
    return one_part(part, clusters, mode="fast", iterations=iterations, seed=seed, initial=initial, threads=threads)


def is_exact(clusters: int, dim: int) -> bool:
    """Whether the fast mode is the exact one for K = ``clusters`` in D = ``dim``."""
    return clusters <= _EXACT_UP_TO or dim < 16


def fast_clusters(
    whole: Coordinator, *, iterations: int, seed: int | list[int], initial: np.ndarray | None, threads: int | None
) -> Clusters:
    """`fast_kmeans` of the points in all parts, which are left labelled; ``threads`` are those used here."""
    centroids = first_centroids(whole, seed, initial)
    random = np.random.default_rng([*np.atleast_1d(seed).tolist(), 1])
    with working(threads or all_threads()) as workers:
        passes = _Passes(whole, centroids, random, workers)
        if initial is None and whole.rows >= 2 * _SAMPLE * whole.clusters:
            sample = np.sort(random.choice(whole.rows, _SAMPLE * whole.clusters, replace=False))
            start = _Passes(whole.sample(sample), centroids, random, workers)
            start.run(_SAMPLE_PASSES)
            passes.centroids = start.centroids
            whole.ask("adopt")
        objective = passes.run(iterations)
    repaired = whole.fill_empty(passes.centroids)
    if repaired:
        objective = whole.mean_cosine(passes.centroids)
    return Clusters(passes.centroids, objective, repaired)


class _Passes:
    """Passes over the points of ``whole`` from ``centroids``; the parts keep labels and cosines."""

    def __init__(
        self, whole: Coordinator, centroids: np.ndarray, random: np.random.Generator, workers: Workers
    ) -> None:
        self.centroids = centroids
        self._whole = whole
        self._workers = workers
        self._random = random
        whole.ask("watch", np.sort(random.choice(whole.rows, min(whole.rows, _PROBE), replace=False)))

    def run(self, passes: int) -> float:
        """Labels for the points without one, then up to ``passes`` times centroids from labels and labels for all.

        Ends as soon as a pass gains less than ``_GAIN``. Returns the objective, by the labels of the last pass.
        """
        self._coded = CodedCentroids.train(self.centroids, self._random)
        self._search(-np.inf)
        objective = -np.inf
        for _ in range(passes):
            near = self._update()
            before, objective = objective, self._look_near(near)
            if objective - before <= _GAIN * abs(objective):
                break
        return objective

    def _search(self, up_to: float) -> float:
        total: float = sum(self._whole.ask("search", self.centroids, *self._coded.arrays(), up_to))
        return total / self._whole.rows

    def _look_near(self, near: np.ndarray) -> float:
        """Labels all points by the centroids near their own, and searches for those that this serves badly."""
        answers = self._whole.ask("look_near", self.centroids, near)
        own, best = (np.concatenate([answer[kind] for answer in answers]) for kind in (1, 2))
        badly = _badly_served(own, best)
        return self._search(badly) if badly > -np.inf else sum(total for total, _, _ in answers) / self._whole.rows

    def _update(self) -> np.ndarray:
        """Centroids from the labels, some then moved elsewhere; which are near each, itself first: ``[K, 65]``."""
        sums = self._whole.sums()
        self.centroids = directions(sums, self.centroids)
        near = self._nearest_to_each()
        if move_clusters(self._whole, sums, self.centroids, near[:, :_JOINABLE]):
            near = self._nearest_to_each()
        return np.concatenate([np.arange(len(near))[:, None], near], axis=1)

    def _nearest_to_each(self) -> np.ndarray:
        """About the ``_NEAR`` centroids nearest to each, most often itself among them, nearest first: ``[K, 64]``."""
        self._coded.encode(self.centroids)
        parts = (self.centroids[part] for part in blocks(len(self.centroids), 1024))
        return np.concatenate(list(self._workers.map(lambda part: self._coded.shortlist(part, _NEAR), parts)))


def _badly_served(own: np.ndarray, best: np.ndarray) -> float:
    """The cosine up to which points should be searched for, -inf if none need be.

    By the probe, with its cosines as they are and as they could ``best`` be: if it loses more than ``_LOSS`` of them,
    then high enough that the points above lose a third of that at most.
    """
    order = np.argsort(own, kind="stable")
    loss = np.maximum(best - own, 0.0)[order]
    bearable = _LOSS * max(float(best.sum()), 0.0)
    if loss.sum() <= bearable:
        return -np.inf
    remaining = loss.sum() - np.cumsum(loss)
    return float(own[order[np.argmax(remaining <= bearable / 3)]])

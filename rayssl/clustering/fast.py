"""The fast mode: a small part of the time of Lloyd's iterations on the CPU, to about their objective or above it.

Four things make the difference. All are seeded, and give the same bits for any number of threads. The points may be
held in parts (`rayssl.clustering.partitions`); this module holds numbers by cluster only.

- *Searches of codes.* Where a point may belong anywhere, all centroids are ranked by 4-bit product codes of their main
  256 dimensions, and the best few are compared exactly.
- *Near passes.* Once its cluster is about right, a point is compared with its own centroid and the 64 nearest to that.
  After each such pass a probe of points is compared with all centroids; where it has lost more than 0.1 % of its
  cosines, the points that lie far from their centroids, as far as the loss reaches, are searched for.
- *A start from a sample* of 10 points for each cluster, so that few passes over everything are left to do.
- *Relocations*, which Lloyd's iterations lack: of two clusters that lose little as one, one is relocated to a cluster
  that gains more as two. An empty cluster is the case that loses nothing. See `rayssl.clustering.relocation`.
"""

from __future__ import annotations

import numpy as np

from rayssl.clustering.codes import CodedCentroids
from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.lloyd import first_centroids
from rayssl.clustering.partition import Partition
from rayssl.clustering.points import Workers, all_threads, blocks, directions, working
from rayssl.clustering.relocation import relocate_clusters
from rayssl.clustering.result import Clusters

_SAMPLE = 10  # points for each cluster
_SAMPLE_PASSES = 3
_JOINABLE = 8  # centroids that a cluster may be joined to
_NEAR = 64  # centroids that a near pass looks at besides the own one
_PROBE = 2048  # points compared with all centroids after a near pass
_LOSS = 0.001  # of their cosine; more calls for a search
_GAIN = 0.001  # relative gain of a pass; less ends the iterations


def fast_clusters(
    coordinator: Coordinator, *, iterations: int, seed: int | list[int], initial: np.ndarray | None, threads: int | None
) -> Clusters:
    """At most ``iterations`` passes, fewer where a pass gains less than 0.1 %; the parts keep the labels.

    Starts from ``initial [K, D]`` (the last centroids: then no sample is needed), else from K points drawn with
    ``seed``. ``threads`` are those of this process (None: as many as faiss uses). Needs
    K >= 256 and D >= 16, for the codes. Every cluster is non-empty on return.
    """
    centroids = first_centroids(coordinator, seed, initial)
    random = np.random.default_rng([*np.atleast_1d(seed).tolist(), 1])
    with working(threads or all_threads()) as workers:
        passes = _Passes(coordinator, centroids, random, workers)
        if initial is None and coordinator.rows >= 2 * _SAMPLE * coordinator.clusters:
            sample = np.sort(random.choice(coordinator.rows, _SAMPLE * coordinator.clusters, replace=False))
            start = _Passes(coordinator.sample(sample), centroids, random, workers)
            start.run(_SAMPLE_PASSES)
            passes.centroids = start.centroids
            coordinator.partitions.every(Partition.adopt)
        objective = passes.run(iterations)
    repaired = coordinator.fill_empty(passes.centroids)
    if repaired:
        objective = coordinator.mean_cosine(passes.centroids)
    return Clusters(passes.centroids, objective, repaired)


class _Passes:
    """Passes over the points of ``coordinator`` from ``centroids``; the parts keep labels and cosines."""

    def __init__(
        self, coordinator: Coordinator, centroids: np.ndarray, random: np.random.Generator, workers: Workers
    ) -> None:
        self.centroids = centroids
        self._coordinator = coordinator
        self._workers = workers
        self._random = random
        probe = np.sort(random.choice(coordinator.rows, min(coordinator.rows, _PROBE), replace=False))
        coordinator.partitions.every(Partition.watch, probe)

    def run(self, passes: int) -> float:
        """Labels the points without a label, then up to ``passes`` times updates the centroids and all labels.

        Ends as soon as a pass gains less than ``_GAIN``. Returns the objective by the labels of the last pass.
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
        projection, codes = self._coded.arrays()
        totals = self._coordinator.partitions.every(Partition.search, self.centroids, projection, codes, up_to)
        return float(sum(totals)) / self._coordinator.rows

    def _look_near(self, near: np.ndarray) -> float:
        """Labels all points by the centroids near their own; searches again for points that lose by this."""
        answers = self._coordinator.partitions.every(Partition.look_near, self.centroids, near)
        own, best = np.concatenate([own for _, own, _ in answers]), np.concatenate([best for _, _, best in answers])
        badly = _badly_served(own, best)
        return (
            self._search(badly) if badly > -np.inf else sum(total for total, _, _ in answers) / self._coordinator.rows
        )

    def _update(self) -> np.ndarray:
        """Centroids from the labels, some then relocated; returns those near to each, itself first: ``[K, 65]``."""
        sums = self._coordinator.sums()
        self.centroids = directions(sums, self.centroids)
        near = self._nearest_to_each()
        if relocate_clusters(self._coordinator, sums, self.centroids, near[:, :_JOINABLE]):
            near = self._nearest_to_each()
        return np.concatenate([np.arange(len(near))[:, None], near], axis=1)

    def _nearest_to_each(self) -> np.ndarray:
        """About the ``_NEAR`` centroids nearest to each, most often itself among them, nearest first: ``[K, 64]``."""
        self._coded.encode(self.centroids)
        parts = (self.centroids[part] for part in blocks(len(self.centroids), 1024))
        return np.concatenate(list(self._workers.map(lambda part: self._coded.shortlist(part, _NEAR), parts)))


def _badly_served(own: np.ndarray, best: np.ndarray) -> float:
    """The cosine up to which points should be searched for again, -inf if there is no need.

    ``own`` are the cosines of the probed points, ``best`` the largest that they could have. If the probe loses more
    than ``_LOSS`` of them, the result is so high that the points above it lose at most a third of that.
    """
    order = np.argsort(own, kind="stable")
    loss = np.maximum(best - own, 0.0)[order]
    bearable = _LOSS * max(float(best.sum()), 0.0)
    if loss.sum() <= bearable:
        return -np.inf
    remaining = loss.sum() - np.cumsum(loss)
    return float(own[order[np.argmax(remaining <= bearable / 3)]])

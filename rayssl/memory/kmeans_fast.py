"""Spherical k-means in a small part of Lloyd's time on the CPU, to about his objective or above it.

Four things make the difference; all are seeded, and give the same bits for any number of threads.

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

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from rayssl.memory.bank import unit_rows
from rayssl.memory.kmeans import (
    KMeans,
    check_points,
    directions,
    faiss_threads,
    fill_empty,
    first_centroids,
    load_faiss,
    mean_cosine,
    partial_sums,
    spherical_kmeans,
)
from rayssl.memory.kmeans_moves import move_clusters

_EXACT_UP_TO = 256  # clusters: Lloyd is as quick
_SAMPLE = 10  # points for each cluster
_SAMPLE_PASSES = 3
_JOINABLE = 8  # centroids that a cluster may be joined to
_NEAR = 64  # centroids that a near pass looks at besides the own one
_SHORTLIST = 8  # centroids that a search compares exactly
_CODED = 256  # dimensions that the codes know of
_PROBE = 2048  # points compared with all centroids after a near pass
_LOSS = 0.001  # of their cosine; more calls for a search
_GAIN = 0.001  # relative gain of a pass; less ends the iterations
_ROWS = 8192

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


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
    if clusters <= _EXACT_UP_TO or x.shape[1] < 16:
        return spherical_kmeans(x, clusters, iterations=iterations, seed=seed, initial=initial, threads=threads)
    check_points(x, clusters, iterations)
    centroids = first_centroids(x, clusters, seed, initial)
    random = np.random.default_rng([*np.atleast_1d(seed).tolist(), 1])
    with _workers(threads) as workers:
        passes = _Passes(x, centroids, random, workers)
        unknown = np.ones(len(x), dtype=bool)
        if initial is None and len(x) >= 2 * _SAMPLE * clusters:
            sample = np.sort(random.choice(len(x), _SAMPLE * clusters, replace=False))
            start = _Passes(x[sample], centroids, random, workers)
            start.run(_SAMPLE_PASSES, np.arange(len(sample)))
            passes.centroids, passes.labels[sample], unknown[sample] = start.centroids, start.labels, False
        objective = passes.run(iterations, np.flatnonzero(unknown))
    repaired = fill_empty(x, passes.labels, passes.centroids)
    if repaired:
        objective = mean_cosine(x, passes.labels, passes.centroids)
    return KMeans(passes.centroids, passes.labels, objective, repaired)


class Workers:
    """Threads for pieces of work whose results come in the order of the pieces."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool = pool
        self._ahead = 2 * count

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """``function`` of each task, in order, never more than a few tasks ahead of who takes the results."""
        waiting: deque[Future[_Result]] = deque()
        for task in tasks:
            waiting.append(self._pool.submit(function, task))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class CodedCentroids:
    """``centroids [K, D]`` to be searched approximately; K at least 256, D at least 16."""

    def __init__(self, centroids: np.ndarray, random: np.random.Generator) -> None:
        dims = min(_CODED, centroids.shape[1]) // 8 * 8
        main = np.linalg.eigh(np.asarray(centroids.T @ centroids, dtype=np.float64))[1][:, -dims:]
        # turned at random, so that all codes carry about as much
        turned = main @ np.linalg.qr(random.standard_normal((dims, dims)))[0]
        self._projection = np.ascontiguousarray(turned, dtype=np.float32)
        faiss = load_faiss()
        self._codes = faiss.IndexPQFastScan(dims, dims // 4, 4, faiss.METRIC_INNER_PRODUCT)
        self._codes.pq.cp.min_points_per_centroid = 1
        self._codes.train(centroids[:16384] @ self._projection)
        self.encode(centroids)

    def encode(self, centroids: np.ndarray) -> None:
        """Takes on other ``centroids [K, D]``, coded as the first ones."""
        self._centroids = centroids
        self._codes.reset()
        self._codes.add(centroids @ self._projection)

    def shortlist(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The ``count`` centroids that seem nearest to each of ``rows [n, D]``, nearest first: int64 ``[n, count]``."""
        found: np.ndarray = self._codes.search(rows @ self._projection, count)[1]
        found[found < 0] = 0  # where the codes' approximate scores leave a place
        return found

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Among the shortlist of each of ``rows [n, D]`` the nearest: labels ``[n]`` and cosines ``[n]``."""
        faiss = load_faiss()
        candidates = self.shortlist(rows, _SHORTLIST)
        cosines = np.empty(candidates.shape, dtype=np.float32)
        pointers = [faiss.swig_ptr(array) for array in (cosines, rows, self._centroids, candidates)]
        faiss.fvec_inner_products_by_idx(*pointers, rows.shape[1], *candidates.shape)
        best = cosines.argmax(axis=1)[:, None]
        return np.take_along_axis(candidates, best, 1)[:, 0], np.take_along_axis(cosines, best, 1)[:, 0]


class _Passes:
    """Passes over ``x [n, D]`` from ``centroids``; ``labels [n]`` int32 and ``cosines [n]`` are those of the last."""

    def __init__(self, x: np.ndarray, centroids: np.ndarray, random: np.random.Generator, workers: Workers) -> None:
        self.x = x
        self.centroids = centroids
        self.labels = np.zeros(len(x), dtype=np.int32)
        self.cosines = np.zeros(len(x), dtype=np.float32)
        self._workers = workers
        self._random = random
        self._probe = np.sort(random.choice(len(x), min(len(x), _PROBE), replace=False))

    def run(self, passes: int, unknown: np.ndarray) -> float:
        """Labels for the points ``unknown``, then up to ``passes`` times centroids from labels and labels for all.

        Ends as soon as a pass gains less than ``_GAIN``. Returns the objective, by the labels of the last pass.
        """
        self._coded = CodedCentroids(self.centroids, self._random)
        self._each(self._search, unknown)
        objective = -np.inf
        for _ in range(passes):
            self._update()
            self._look_near()
            before, objective = objective, float(self.cosines.mean(dtype=np.float64))
            if objective - before <= _GAIN * abs(objective):
                break
        return objective

    def _look_near(self) -> None:
        """Labels all points by the centroids near their own, and searches for those that this serves badly."""
        self._each(self._near_block, np.argsort(self.labels, kind="stable"))
        badly = self._badly_served()
        if badly > -np.inf:
            self._each(self._search, np.flatnonzero(self.cosines <= badly))

    def _each(self, function: Callable[[np.ndarray], None], ids: np.ndarray) -> None:
        for _ in self._workers.map(function, (ids[start : start + _ROWS] for start in range(0, len(ids), _ROWS))):
            pass

    def _search(self, ids: np.ndarray) -> None:
        self.labels[ids], self.cosines[ids] = self._coded.nearest(unit_rows(self.x[ids]))

    def _near_block(self, ids: np.ndarray) -> None:
        """Labels the points ``ids``, which come sorted by cluster: what a cluster is compared with is fetched once."""
        rows, own = unit_rows(self.x[ids]), self.labels[ids]
        found, best = np.empty_like(own), np.empty(len(own), dtype=np.float32)
        fetched = np.empty((self._near.shape[1], rows.shape[1]), dtype=np.float32)
        edges = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), len(own)]
        for first, last in itertools.pairwise(edges):
            near = self._near[own[first]]
            np.take(self.centroids, near, axis=0, out=fetched, mode="clip")
            cosines = rows[first:last] @ fetched.T
            found[first:last] = near[cosines.argmax(axis=1)]
            best[first:last] = cosines.max(axis=1)
        self.labels[ids], self.cosines[ids] = found, best

    def _badly_served(self) -> float:
        """The cosine up to which points should be searched for, -inf if none need be.

        Found on the probe, by comparing it with all centroids: if it loses more than ``_LOSS`` of its cosines, then
        high enough that the points above lose a third of that at most.
        """
        rows, own = unit_rows(self.x[self._probe]), self.cosines[self._probe]
        parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        best = np.concatenate(list(self._workers.map(lambda part: (part @ self.centroids.T).max(axis=1), parts)))
        order = np.argsort(own, kind="stable")
        loss = np.maximum(best - own, 0.0)[order]
        bearable = _LOSS * max(float(best.sum()), 0.0)
        if loss.sum() <= bearable:
            return -np.inf
        remaining = loss.sum() - np.cumsum(loss)
        return float(own[order[np.argmax(remaining <= bearable / 3)]])

    def _update(self) -> None:
        """Centroids from the labels, some then moved elsewhere; and which are near which."""
        order = np.argsort(self.labels, kind="stable")
        blocks = (order[start : start + _ROWS] for start in range(0, len(order), _ROWS))
        sums = np.zeros(self.centroids.shape)
        for present, part in self._workers.map(self._sums, blocks):
            sums[present] += part
        self.centroids = directions(sums, self.centroids)
        self._coded.encode(self.centroids)
        near = self._nearest_to_each()
        if move_clusters(self.x, self.labels, sums, self.centroids, near[:, :_JOINABLE], order, self._workers.map):
            self._coded.encode(self.centroids)
            near = self._nearest_to_each()
        self._near = np.concatenate([np.arange(len(sums))[:, None], near], axis=1)

    def _sums(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return partial_sums(unit_rows(self.x[ids]), self.labels[ids])

    def _nearest_to_each(self) -> np.ndarray:
        """About the ``_NEAR`` centroids nearest to each, most often itself among them, nearest first: ``[K, 64]``."""
        parts = (self.centroids[start : start + 1024] for start in range(0, len(self.centroids), 1024))
        return np.concatenate(list(self._workers.map(lambda part: self._coded.shortlist(part, _NEAR), parts)))


@contextmanager
def _workers(threads: int | None) -> Iterator[Workers]:
    """One task a thread: shared thread pools would make results depend on how many there are."""
    faiss: Any = load_faiss()
    count = threads or faiss.omp_get_max_threads() or os.cpu_count() or 1
    with (
        faiss_threads(threads),
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(count, "kmeans", initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool,
    ):
        yield Workers(pool, count)

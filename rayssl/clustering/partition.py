"""One part of the points of a k-means, in one process: what it holds, and what it answers.

All parts together are reached through `rayssl.clustering.partitions.Partitions`. With the same labels, what the parts
answer adds up to the same bits, however the points are divided among them. Arguments and answers are arrays and plain
numbers, at most some rows of D for each cluster, so that a part may live in another process or on another node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from rayssl.clustering.codes import CodedCentroids
from rayssl.clustering.members import Members, Ranking, stretches
from rayssl.clustering.points import (
    Workers,
    all_threads,
    assign,
    blocks,
    exact_total,
    faiss_threads,
    partial_sums,
    steps,
    unit_rows,
    working,
)
from rayssl.clustering.result import Clusters
from rayssl.clustering.similarity import nearest_centroids
from rayssl.clustering.ward import nearest_merges

_ROWS = 8192  # of one block
_MERGED = 256  # clusters that are compared with all others in one block
P = ParamSpec("P")
T = TypeVar("T")


class Partition:
    """``x [n, D]`` (float16 or float32, n may be 0), one stretch of all points; normalised in blocks, never copied.

    ``labels [n]`` int32 are the clusters of its points. ``cosines [n]`` float32 are those to their centroids; only fast
    passes keep them. The same calls give the same bits whatever ``threads`` is (None: as many as faiss would use). Call
    the parts of one process one after the other, because the numbers of threads are settings of the process.
    """

    def __init__(self, x: np.ndarray, *, threads: int | None = None) -> None:
        self.x = x
        self.labels = np.zeros(len(x), dtype=np.int32)
        self.cosines = np.zeros(0, dtype=np.float32)
        self._threads = threads or all_threads()
        self._start = self._clusters = 0
        self._order: tuple[np.ndarray, np.ndarray] | None = None
        self._held: Members | None = None  # from `hold` until labels change
        self._ranking: Ranking | None = None  # from `rank` until labels change

    def survey(self) -> tuple[int, int, bool]:
        """Returns how many points are here, their dimension, and whether all values are finite."""
        finite = all(bool(np.isfinite(self.x[part]).all()) for part in blocks(len(self.x), _ROWS))
        return len(self.x), self.x.shape[1], finite

    def begin(self, start: int, clusters: int) -> None:
        """Forgets the last clustering. The first point here is point ``start`` of all; labels are 0..``clusters``-1."""
        self._start, self._clusters = start, clusters
        self._relabel(0)

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of ``positions [m]``, counted over all points, are here, and their rows: ``[h]`` and ``[h, D]``."""
        here = np.flatnonzero((positions >= self._start) & (positions < self._start + len(self.x)))
        return here, self.x[positions[here] - self._start]

    def assignment(self) -> np.ndarray:
        """The labels, int32 ``[n]``."""
        return self.labels

    def sizes(self) -> np.ndarray:
        """How many points of each cluster are here, int64 ``[K]``."""
        return np.bincount(self.labels, minlength=self._clusters)

    def sums(self, first: int, last: int) -> np.ndarray:
        """The exact sum of the unit rows here of each of the clusters first..last-1: float64 ``[last - first, D]``."""
        order, ends = self._by_label()
        members = order[ends[first] : ends[last]]
        sums = np.zeros((last - first, self.x.shape[1]))

        def some(part: slice) -> tuple[np.ndarray, np.ndarray]:
            ids = members[part]
            return partial_sums(steps(self.x[ids]), self.labels[ids])

        with self._working() as workers:
            for present, found in workers.map(some, blocks(len(members), _ROWS)):
                sums[present - first] += found
        return sums

    # Lloyd's iterations

    def lloyd(self, start: np.ndarray, iterations: int) -> Clusters | None:
        """All of `rayssl.clustering.lloyd.lloyd_clusters`, if this part can do it better alone; None if it cannot.

        Asked only where this part has all points, after `begin`. ``start``: positions of points ``[K]``, or centroids
        ``[K, D]``.
        """
        return None

    def assign(self, centroids: np.ndarray) -> bool:
        """Labels all points by the nearest of ``centroids [K, D]``; whether any label changed."""
        nearest = self._nearest(centroids)
        changed = not np.array_equal(nearest, self.labels)
        self._relabel(nearest)
        return changed

    def total_cosine(self, centroids: np.ndarray) -> float:
        """The sum of the cosines to the own centroids."""
        total = 0.0
        for part in blocks(len(self.x), _ROWS):
            total += exact_total(np.einsum("nd,nd->n", unit_rows(self.x[part]), centroids[self.labels[part]]))
        return total

    def near_centroids(self, centroids: np.ndarray, count: int, first: int, last: int) -> np.ndarray:
        """`nearest_centroids` for the centroids first..last-1, of all: int32 ``[last - first, count]``."""
        return nearest_centroids(centroids, count, first, last)

    def near_merges(self, means: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`nearest_merges` for ``rows [m]`` of all clusters, of any part: int64 ``[m]`` and float32 ``[m]``."""

        def some(part: slice) -> tuple[np.ndarray, np.ndarray]:
            return nearest_merges(means, sizes, rows[part])

        with self._working() as workers:
            found = list(workers.map(some, blocks(len(rows), _MERGED)))
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])

    def _nearest(self, centroids: np.ndarray) -> np.ndarray:
        with faiss_threads(self._threads):
            return assign(self.x, centroids)

    # Halving and joining of clusters

    def relabel(self, table: np.ndarray) -> None:
        """Gives the points of each cluster k to cluster ``table[k]``; int32 ``[K]``."""
        self._relabel(table[self.labels])

    def hold(self, clusters: np.ndarray, ranks: np.ndarray, strides: np.ndarray) -> None:
        """Fetches members of ``clusters [S]`` for `farthest`, `held_sums` and `lean`.

        All of them where ``strides [S]`` is 1, else every ``strides[s]``-th, counted over all parts; ``ranks [S]`` is
        the number of members that earlier parts have.
        """
        order, ends = self._by_label()
        skipped = -ranks % strides
        starts = ends[clusters] + skipped
        lengths = np.maximum(0, -((starts - ends[clusters + 1]) // strides))
        places, cluster = stretches(starts, lengths, strides)
        with self._working() as workers:
            self._held = Members(self.x, order[places], cluster, workers)

    def held_sums(self, count: int) -> np.ndarray:
        """`Members.sums`."""
        assert self._held is not None
        return self._held.sums(count)

    def farthest(self, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Members.farthest`."""
        assert self._held is not None
        with self._working() as workers:
            return self._held.farthest(centroids, workers)

    def lean(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Members.lean`."""
        assert self._held is not None
        with self._working() as workers:
            return self._held.lean(directions, workers)

    def rank(self, clusters: np.ndarray, directions: np.ndarray) -> None:
        """Ranks all members of ``clusters [S]`` along ``directions [S, D]``, for `histogram` and `split`."""
        order, ends = self._by_label()
        starts = ends[clusters]
        places, cluster = stretches(starts, ends[clusters + 1] - starts, np.ones_like(starts))
        with self._working() as workers:
            self._ranking = Ranking(self.x, order[places], cluster, directions, workers)

    def histogram(self, known: np.ndarray, shift: int) -> np.ndarray:
        """`Ranking.histogram`."""
        assert self._ranking is not None
        return self._ranking.histogram(known, shift)

    def split(self, targets: np.ndarray, places: np.ndarray, equal: np.ndarray) -> np.ndarray:
        """Gives the lower ranked members, see `Ranking.below`, to ``targets [S]``.

        Returns the sums of those who stay and of those who leave, float64 ``[S, 2, D]``.
        """
        ranking = self._ranking
        assert ranking is not None
        below = ranking.below(places, equal)
        with self._working() as workers:
            sums = ranking.sums(below, workers)
        self._relabel(targets[ranking.cluster[below]], ranking.ids[below])
        return sums

    # Fast passes, see `rayssl.clustering.fast`

    def draw(self, sample: np.ndarray) -> None:
        """Copies the points here that are in ``sample [m]``, ascending numbers over all points, for `on_sample`."""
        first, last = np.searchsorted(sample, (self._start, self._start + len(self.x))).tolist()
        self._drawn = sample[first:last] - self._start
        self._sample = Partition(self.x[self._drawn], threads=self._threads)
        self._sample.begin(first, self._clusters)

    def on_sample(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Calls ``method`` on the points that were drawn, which are a `Partition` of their own."""
        return call(self._sample, method, *arguments, **options)

    def adopt(self) -> None:
        """Takes over the labels of the sample and forgets the sample. Call `watch` before."""
        self._relabel(self._sample.labels, self._drawn)
        self.cosines[self._drawn] = self._sample.cosines
        del self._drawn, self._sample

    def watch(self, probe: np.ndarray) -> None:
        """Call it before the first pass. No label is known yet; `look_near` will probe the positions ``probe``.

        Positions are int64, counted over all points, and ascend.
        """
        self.cosines = np.full(len(self.x), -np.inf, dtype=np.float32)
        here = (probe >= self._start) & (probe < self._start + len(self.x))
        self._probe = probe[here] - self._start

    def search(self, centroids: np.ndarray, projection: np.ndarray, codes: np.ndarray, up_to: float) -> float:
        """Searches coded centroids for the points whose cosine is at most ``up_to``; -inf: those without a label.

        ``projection, codes``: `CodedCentroids.arrays`. Returns the sum of all cosines.
        """
        coded = CodedCentroids(centroids, projection, codes)
        ids = np.flatnonzero(self.cosines <= up_to)

        def some(part: slice) -> None:
            own = ids[part]
            self.labels[own], self.cosines[own] = coded.nearest(unit_rows(self.x[own]))

        self._each(some, len(ids))
        return exact_total(self.cosines)

    def look_near(self, centroids: np.ndarray, near: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Labels all points by the nearest of ``centroids [K, D]`` among those ``near [K, m]`` their own.

        Returns the sum of all cosines, and of the probed points the cosines and the largest that there could be.
        """
        order, _ = self._by_label()
        self._held = None

        def some(part: slice) -> None:
            ids = order[part]
            self.labels[ids], self.cosines[ids] = _nearest_among(
                unit_rows(self.x[ids]), self.labels[ids], centroids, near
            )

        def largest(part: slice) -> np.ndarray:
            found: np.ndarray = (unit_rows(self.x[self._probe[part]]) @ centroids.T).max(axis=1)
            return found

        self._each(some, len(order))
        with self._working() as workers:
            best = list(workers.map(largest, blocks(len(self._probe), 256)))
        own = self.cosines[self._probe]
        return exact_total(self.cosines), own, np.concatenate(best) if best else own

    def _each(self, function: Callable[[slice], None], count: int) -> None:
        """``function`` labels 0..``count`` in blocks."""
        with self._working() as workers:
            for _ in workers.map(function, blocks(count, _ROWS)):
                pass
        self._order = None

    def _relabel(self, labels: np.ndarray | int, ids: np.ndarray | slice = slice(None)) -> None:
        """Gives ``labels`` to the points ``ids`` and forgets what was found for the old labels."""
        self.labels[ids] = labels
        self._order = self._held = self._ranking = None

    def _working(self) -> AbstractContextManager[Workers]:
        return working(self._threads)

    def _by_label(self) -> tuple[np.ndarray, np.ndarray]:
        """The points sorted by label ``[n]``, and where those of each cluster start: ``[K + 1]``, with the end."""
        if self._order is None:
            ends = np.concatenate([[0], np.cumsum(self.sizes())])
            self._order = np.argsort(self.labels, kind="stable"), ends
        return self._order


def call(
    part: Partition, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
) -> T:
    """Calls ``method`` of `Partition` on ``part``, as the class of ``part`` overrides it."""
    answer: T = getattr(part, method.__name__)(*arguments, **options)
    return answer


def _nearest_among(
    rows: np.ndarray, own: np.ndarray, centroids: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For ``rows [n, D]``, sorted by their clusters ``own [n]``, the nearest of those ``near [K, m]`` it; its cosine.

    The centroids for one cluster are fetched once.
    """
    found, best = np.empty_like(own), np.empty(len(own), dtype=np.float32)
    fetched = np.empty((near.shape[1], rows.shape[1]), dtype=np.float32)
    edges = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), len(own)]
    for first, last in itertools.pairwise(edges):
        among = near[own[first]]
        np.take(centroids, among, axis=0, out=fetched, mode="clip")
        cosines = rows[first:last] @ fetched.T
        found[first:last] = among[cosines.argmax(axis=1)]
        best[first:last] = cosines.max(axis=1)
    return found, best

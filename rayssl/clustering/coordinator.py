"""The coordinator of a k-means: it adds up what the parts of the points answer, and halves clusters.

It holds numbers by cluster only, never points. Every draw is made here, and sums are exact, so that the number of parts
changes nothing; only products with centroids may differ in their last bit with the shape of what is multiplied.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import Partitions, SampledPartitions
from rayssl.clustering.points import blocks, directions, unit_rows

_ANSWERS = 2**28  # bytes that the answers of all parts to one call may take
_HELD = 16384  # members that a part holds at a time: at D = 512 they take 32 MB
_MEMBERS = 4096  # members of a cluster that are looked at, at most, for its farthest member or its halves


class CentroidRows(Protocol):
    """Centroids ``[K, D]``, wherever they are: some are read and replaced by their numbers, int64."""

    def __getitem__(self, which: np.ndarray, /) -> np.ndarray:
        """Float32 ``[S, D]``."""

    def __setitem__(self, which: np.ndarray, rows: np.ndarray, /) -> None:
        """Replaces ``[S, D]``."""


@dataclass(frozen=True)
class Coordinator:
    """All ``parts`` behind ``partitions``: together ``rows`` n points of ``dim`` D, for K = ``clusters``."""

    partitions: Partitions
    parts: int
    rows: int
    dim: int
    clusters: int

    @classmethod
    def survey(cls, partitions: Partitions, clusters: int) -> Coordinator:
        """Counts and checks the points, and makes every part forget its last clustering.

        Raises ValueError where there are fewer points than ``clusters``, where the dimensions of parts differ, and
        where a value is not finite.
        """
        found = partitions.every(Partition.survey)
        rows = [count for count, _, _ in found]
        if sum(rows) < clusters:
            raise ValueError(
                f"{sum(rows)} points cannot fill {clusters} clusters; remember more references or lower clusters"
            )
        dims = {dim for _, dim, _ in found}
        if len(dims) > 1:
            raise ValueError(f"parts of the points for k-means have different dimensions: {sorted(dims)}")
        if not all(finite for _, _, finite in found):
            raise ValueError("points for k-means hold values that are not finite")
        partitions.each(Partition.begin, [(sum(rows[:part]), clusters) for part in range(len(rows))])
        return cls(partitions, len(rows), sum(rows), dims.pop(), clusters)

    def sample(self, positions: np.ndarray) -> Coordinator:
        """The coordinator of the points at ``positions [m]``, ascending int64; in use until `Partition.adopt`."""
        self.partitions.every(Partition.draw, positions)
        return Coordinator(SampledPartitions(self.partitions), self.parts, len(positions), self.dim, self.clusters)

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """The points at ``positions [m]``, scaled to norm 1: float32 ``[m, D]``."""
        found = np.empty((len(positions), self.dim), dtype=np.float32)
        for here, rows in self.partitions.every(Partition.rows, positions):
            found[here] = unit_rows(rows)
        return found

    def sizes(self) -> np.ndarray:
        """How many points of each cluster each part has, int64 ``[parts, K]``."""
        return np.stack(self.partitions.every(Partition.sizes))

    def sums(self) -> np.ndarray:
        """The exact sums of the unit rows of each cluster, float64 ``[K, D]``."""
        found = [
            _added(self.partitions.every(Partition.sums, part.start, part.stop))
            for part in blocks(self.clusters, self._at_once())
        ]
        return np.concatenate(found) if len(found) > 1 else found[0]

    def mean_cosine(self, centroids: np.ndarray) -> float:
        """The mean cosine between the points and their own of ``centroids [K, D]``."""
        return float(sum(self.partitions.every(Partition.total_cosine, centroids))) / self.rows

    def farthest(self, clusters: np.ndarray, sizes: np.ndarray, centroids: CentroidRows) -> np.ndarray:
        """Of each of ``clusters [S]`` the member farthest from its centroid (``[K, D]``): unit rows ``[S, D]``.

        Of up to 4,096 members of each, evenly spread over all points. ``sizes [parts, K]``.
        """
        found = np.zeros((len(clusters), self.dim), dtype=np.float32)
        for part, _ in self.held(clusters, sizes):
            found[part] = self.farthest_held(centroids[clusters[part]])
        return found

    def farthest_held(self, centroids: np.ndarray) -> np.ndarray:
        """The member farthest from each of ``centroids [S, D]`` among those that the parts hold."""
        least = np.full(len(centroids), np.inf, dtype=np.float32)
        found = np.zeros(centroids.shape, dtype=np.float32)
        for cosines, rows in self.partitions.every(Partition.farthest, centroids):
            further = cosines < least  # of equals the first part's, as its points come first
            least[further], found[further] = cosines[further], rows[further]
        return found

    def held_sums(self, count: int) -> np.ndarray:
        """The sums of the members that the parts hold of each of ``count`` clusters: float64 ``[S, D]``."""
        return _added(self.partitions.every(Partition.held_sums, count))

    def held(self, clusters: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Makes the parts hold members of ``clusters [S]``, some clusters at a time: about 16,384 members in a part.

        Yields a slice of ``clusters``, and the strides by which the members of each were chosen.
        """
        sizes = sizes[:, clusters]
        strides = np.maximum(1, -(-sizes.sum(axis=0) // _MEMBERS))
        ranks = np.cumsum(sizes, axis=0) - sizes
        loads = np.cumsum((-(-sizes // strides)).max(axis=0))
        start = 0
        while start < len(clusters):
            before = loads[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(loads, before + _HELD, side="right")))
            part = slice(start, min(stop, start + self._at_once()))
            self.partitions.each(Partition.hold, [(clusters[part], own[part], strides[part]) for own in ranks])
            yield part, strides[part]
            start = part.stop

    def fill_empty(self, centroids: CentroidRows) -> int:
        """Gives each empty cluster half of the then largest one; returns how many there were.

        The half that leaves is the one towards the member farthest from the centroid. Halving, rather than relocating
        a single outlier, keeps a collapsed clustering (nearly all points in one) at N log K work. The sizes alone
        decide which cluster is halved for which, so that many are halved at a time. ``centroids [K, D]`` of both change
        in place.
        """
        sizes = self.sizes()
        empty = int((sizes.sum(axis=0) == 0).sum())
        for sources, targets in _halvings(sizes.sum(axis=0)):
            for part in blocks(len(sources), self._at_once() // 2):
                self._halve(sources[part], targets[part], sizes, centroids)
            sizes = self.sizes()
        return empty

    def _halve(self, sources: np.ndarray, targets: np.ndarray, sizes: np.ndarray, centroids: CentroidRows) -> None:
        own = centroids[sources]
        outliers = self.farthest(sources, sizes, centroids)
        self.partitions.every(Partition.rank, sources, own - outliers)
        places, equal = self._places(sizes[:, sources].sum(axis=0) // 2)
        sums = _added(self.partitions.each(Partition.split, [(targets, places, few) for few in equal]))
        centroids[sources] = directions(sums[:, 0], own)
        centroids[targets] = directions(sums[:, 1], directions(outliers, own))

    def _places(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places below which ``ranks [S]`` of the ranked members lie, and how many members at the place to add.

        uint32 ``[S]`` and int64 ``[parts, S]``. Of the members at the same place the first ones are taken.
        """
        known, missing = np.zeros(len(ranks), dtype=np.uint32), ranks.copy()
        all_clusters = np.arange(len(ranks))
        for shift in (24, 16, 8, 0):
            counts = np.stack(self.partitions.every(Partition.histogram, known, shift))
            total = np.cumsum(counts.sum(axis=0), axis=1)
            digit = (total < missing[:, None]).sum(axis=1)
            missing -= np.where(digit > 0, total[all_clusters, digit - 1], 0)
            known = known << np.uint32(8) | digit.astype(np.uint32)
        at = counts[:, all_clusters, digit]
        return known, np.clip(missing - (np.cumsum(at, axis=0) - at), 0, at)

    def _at_once(self) -> int:
        """The number of clusters whose sums the parts may return in one call."""
        return max(256, _ANSWERS // (8 * self.dim * self.parts))


def _added(answers: list[np.ndarray]) -> np.ndarray:
    """The sum of the ``answers`` of all parts. The first answer may be read-only, so it is not written to."""
    total = answers[0]
    for place, answer in enumerate(answers[1:]):
        total = total + answer if place == 0 else np.add(total, answer, out=total)
    return total


def _halvings(sizes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which cluster is halved for which empty one, given ``sizes [K]``: always the largest at that time.

    Yields sources and targets, int64. Halvings that do not depend on each other come together.
    """
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return
    # no more than the first so many are ever the largest; in this order they are a heap
    order = np.argsort(-sizes, kind="stable")[: len(empty)]
    largest = [(-int(sizes[cluster]), cluster) for cluster in order.tolist() if sizes[cluster] > 1]
    turn: dict[int, int] = {}  # how many turns have changed a cluster
    turns: list[list[tuple[int, int]]] = []
    for target in empty.tolist():
        size, source = heapq.heappop(largest)
        now = turn.get(source, 0)
        if now == len(turns):
            turns.append([])
        turns[now].append((source, target))
        turn[source] = turn[target] = now + 1
        half = -size // 2
        for part, cluster in ((half, target), (-size - half, source)):
            if part > 1:
                heapq.heappush(largest, (-part, cluster))
    for together in turns:
        sources, targets = np.array(together, dtype=np.int64).T
        yield sources, targets

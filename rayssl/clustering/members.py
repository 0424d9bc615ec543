"""Members of chosen clusters in one part of the points: what the halving of clusters needs to know of them.

All products here are taken row by row, so that their bits do not depend on which other rows a part holds.
"""

from __future__ import annotations

import numpy as np

from rayssl.clustering.points import GRID, Workers, blocks, partial_sums, steps

_ROWS = 1024  # of one task: they stay in a core's cache while they are worked on


def stretches(starts: np.ndarray, lengths: np.ndarray, strides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ``strides[s]``-th of the numbers from ``starts[s]``, as many as ``lengths[s]``, one s after the other.

    The second array says of which s each is. All are int64.
    """
    of = np.repeat(np.arange(len(starts)), lengths)
    before = np.cumsum(lengths) - lengths
    return starts[of] + strides[of] * (np.arange(len(of)) - before[of]), of


class Members:
    """Some members of S clusters, fetched once for several calls: ``ids [m]`` are rows of ``x``, by ``cluster [m]``.

    ``cluster`` is in 0..S-1 and ascends, the ids of one ascend too.
    """

    def __init__(self, x: np.ndarray, ids: np.ndarray, cluster: np.ndarray, workers: Workers) -> None:
        self._rows = np.empty((len(ids), x.shape[1]), dtype=np.float32)  # in steps of the grid
        self._cluster = cluster
        self._side = np.zeros(len(ids), dtype=bool)

        def fetch(part: slice) -> None:
            self._rows[part] = steps(x[ids[part]])

        for _ in workers.map(fetch, blocks(len(ids), _ROWS)):
            pass

    def sums(self, count: int) -> np.ndarray:
        """The sum of the members of each of the ``count`` clusters, float64 ``[S, D]``."""
        sums = np.zeros((count, self._rows.shape[1]))
        for part in blocks(len(self._rows), _ROWS):
            present, found = partial_sums(self._rows[part], self._cluster[part])
            sums[present] += found
        return sums

    def farthest(self, centroids: np.ndarray, workers: Workers) -> tuple[np.ndarray, np.ndarray]:
        """Of each cluster the least cosine to its row of ``centroids [S, D]``, and the first row with it.

        float32 ``[S]`` and ``[S, D]``. Where a cluster has no member here: infinity and zeros.
        """
        cosines = self._products(centroids, workers)
        least = np.full(len(centroids), np.inf, dtype=np.float32)
        np.minimum.at(least, self._cluster, cosines)
        hits = np.flatnonzero(cosines == least[self._cluster])
        present, first = np.unique(self._cluster[hits], return_index=True)
        rows = np.zeros(centroids.shape, dtype=np.float32)
        rows[present] = self._rows[hits[first]] * np.float32(GRID)
        return least, rows

    def lean(self, directions: np.ndarray, workers: Workers) -> tuple[np.ndarray, np.ndarray]:
        """Which members have a positive product with their row of ``directions [S, D]``: changes since the last call.

        Counts int64 ``[S]`` and sums float64 ``[S, D]``: those of the members that are new, minus those of the members
        that no longer are. Before the first call there are none.
        """
        counts, sums = np.zeros(len(directions), dtype=np.int64), np.zeros(directions.shape)
        side = self._products(directions, workers) > 0
        turned = np.flatnonzero(side != self._side)
        self._side = side

        def difference(part: slice) -> tuple[np.ndarray, np.ndarray]:
            ids = turned[part]
            return partial_sums(self._rows[ids], self._cluster[ids], np.where(side[ids], 1, -1))

        np.add.at(counts, self._cluster[turned], np.where(side[turned], 1, -1))
        for present, found in workers.map(difference, blocks(len(turned), _ROWS)):
            sums[present] += found
        return counts, sums

    def _products(self, others: np.ndarray, workers: Workers) -> np.ndarray:
        """Each member's product with the row of ``others [S, D]`` that its cluster has, float32 ``[m]``, in steps."""

        def some(part: slice) -> np.ndarray:
            found: np.ndarray = np.einsum("nd,nd->n", self._rows[part], others[self._cluster[part]])
            return found

        found = list(workers.map(some, blocks(len(self._rows), _ROWS)))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


class Ranking:
    """All members of S clusters ranked by where they lie along ``directions [S, D]``; of x only blocks are held.

    ``ids [m]`` are rows of ``x``, by ``cluster [m]`` as for `Members`. Ranks are found by halving the range of the
    places, eight of their 32 bits at a time: nothing but counts needs to leave a part.
    """

    def __init__(
        self, x: np.ndarray, ids: np.ndarray, cluster: np.ndarray, directions: np.ndarray, workers: Workers
    ) -> None:
        self.ids, self.cluster = ids, cluster
        self._x, self._count = x, len(directions)

        def places(part: slice) -> np.ndarray:
            found: np.ndarray = np.einsum("nd,nd->n", steps(x[ids[part]]), directions[cluster[part]])
            return found

        found = list(workers.map(places, blocks(len(ids), _ROWS)))
        bits = (np.concatenate(found) + np.float32(0) if found else np.zeros(0, np.float32)).view(np.uint32)
        # as integers in the same order; the addition has made -0 a 0
        self._places = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))

    def histogram(self, known: np.ndarray, shift: int) -> np.ndarray:
        """How often each value of the next eight bits occurs in each cluster: int64 ``[S, 256]``.

        Counts the members whose higher bits are ``known [S]``; the next eight start at bit ``shift``, 24, 16, 8 or 0.
        """
        places, cluster = self._places.astype(np.uint64), self.cluster
        fit = places >> np.uint64(shift + 8) == known.astype(np.uint64)[cluster]
        digits = (places[fit] >> np.uint64(shift) & np.uint64(255)).astype(np.int64)
        counts: np.ndarray = np.bincount(cluster[fit] * 256 + digits, minlength=self._count * 256)
        return counts.reshape(-1, 256)

    def below(self, places: np.ndarray, equal: np.ndarray) -> np.ndarray:
        """Which members lie below ``places [S]``, or are among the first ``equal [S]`` at it: bool ``[m]``."""
        limits = places.astype(np.uint32)[self.cluster]
        at = np.flatnonzero(self._places == limits)
        owners = self.cluster[at]
        rank = np.arange(len(at)) - np.searchsorted(owners, owners)
        chosen: np.ndarray = self._places < limits
        chosen[at] = rank < equal[owners]
        return chosen

    def sums(self, below: np.ndarray, workers: Workers) -> np.ndarray:
        """The sums of the two kinds of members of each cluster, those ``below [m]`` second: float64 ``[S, 2, D]``."""
        sums = np.zeros((2 * self._count, self._x.shape[1]))
        kinds = self.cluster * 2 + below

        def some(part: slice) -> tuple[np.ndarray, np.ndarray]:
            return partial_sums(steps(self._x[self.ids[part]]), kinds[part])

        for present, found in workers.map(some, blocks(len(self.ids), _ROWS)):
            sums[present] += found
        return sums.reshape(self._count, 2, -1)

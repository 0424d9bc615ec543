"""Ward's criterion: which of many small clusters belong together (Ward, 1963).

Merging two clusters adds ``n_a n_b / (n_a + n_b) |m_a - m_b|^2`` to the sum of the squared distances to the means; the
pair that adds least is merged first. Where clusters have few members, those merged from the smaller clusters of a
k-means are purer than those of a k-means with the final number (`configs/README.md`).

Pairs that are nearest to each other are merged at the same time. This gives the same tree as one pair after the other:
by this criterion a merged cluster is never nearer to a third one than the nearer of its halves was (Murtagh, 1983).
So the work is some matrix products of all means, and nothing of the size M x M is held.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Near = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""`nearest_merges` by whoever does it: the parts of the points, perhaps on a GPU."""


_FEWEST = 10  # clusters that are suggested: below, a step of one is too coarse for a slope
_SPAN = 1.2  # from K / 1.2 to 1.2 K the slope at K is measured


def merge_table(sums: np.ndarray, sizes: np.ndarray, clusters: int, near: Near) -> tuple[np.ndarray, int]:
    """Merges M clusters into K = ``clusters``: the new number of each, int32 ``[M]``, numbered as they first occur.

    ``sums [M, D]`` float64 of the members, and their numbers ``sizes [M]``, all at least 1. Also returns
    `suggested_clusters` of the whole tree. Raises ValueError unless 1 <= K <= M. Needs 20 M D bytes besides ``sums``.
    """
    if not 1 <= clusters <= len(sums):
        raise ValueError(f"clusters must be in 1..{len(sums)}, the number of those that are merged, got {clusters}")
    costs, kept, gone = _tree(sums.copy(), sizes.astype(np.int64), near)
    first = np.argsort(costs, kind="stable")[: len(sums) - clusters]
    into = np.arange(len(sums))
    into[gone[first]] = kept[first]  # each is merged into a lower one, once at the most
    while not np.array_equal(into, further := into[into]):
        into = further
    table: np.ndarray = np.unique(into, return_inverse=True)[1].astype(np.int32)
    return table, suggested_clusters(costs)


def suggested_clusters(costs: np.ndarray) -> int:
    """At how many clusters the cost of a merge falls most steeply, on logarithmic scales: in 10..M/2, else 0.

    ``costs [M - 1]`` of all merges. While parts of a group are merged, costs are low; where whole groups are merged,
    they are high. So this is about the number of groups, if the groups are what differs most.
    """
    wanted = np.arange(_FEWEST, (len(costs) + 1) // 2 + 1)
    highest = float(costs.max(initial=0))
    if not len(wanted) or highest <= 0:
        return 0
    falling = np.log(np.maximum(np.sort(costs)[::-1], 1e-9 * highest))  # entry k - 1: from k + 1 clusters to k
    fewer = np.round(wanted / _SPAN).astype(np.int64)
    more = np.minimum(np.round(wanted * _SPAN).astype(np.int64), len(costs))
    slopes = (falling[fewer - 1] - falling[more - 1]) / np.log(more / fewer)
    return int(wanted[slopes.argmax()])


def _tree(sums: np.ndarray, sizes: np.ndarray, near: Near) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All M - 1 merges, until one cluster is left: costs, and the numbers of both clusters (kept, gone).

    ``sums`` and ``sizes`` change in place.
    """
    numbers = np.arange(len(sums))
    costs, kept, gone = np.empty(len(sums) - 1, dtype=np.float32), numbers[1:].copy(), numbers[1:].copy()
    nearest, least = near(*_means(sums, sizes), numbers)
    made = 0
    while len(numbers) > 1:
        low, high = _pairs(nearest, least)
        now = slice(made, made := made + len(low))
        costs[now], kept[now], gone[now] = least[low], numbers[low], numbers[high]
        sums[low] += sums[high]
        sizes[low] += sizes[high]
        touched, stays = np.zeros(len(numbers), dtype=bool), np.ones(len(numbers), dtype=bool)
        touched[low] = touched[high] = True
        stays[high] = False
        stale = (touched | touched[nearest])[stays]
        place = np.cumsum(stays) - 1
        sums, sizes, numbers = sums[stays], sizes[stays], numbers[stays]
        nearest, least = place[nearest[stays]], least[stays]
        if len(numbers) > 1:
            again = np.flatnonzero(stale)
            nearest[again], least[again] = near(*_means(sums, sizes), again)
    return costs, kept, gone


def _pairs(nearest: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are nearest to each other: both sides, the lower number first."""
    own = np.arange(len(nearest))
    low = np.flatnonzero((nearest[nearest] == own) & (own < nearest))
    if len(low):
        return low, nearest[low]
    cheapest = int(costs.argmin())  # equal costs, rounded apart: no two agree
    pair = sorted((cheapest, int(nearest[cheapest])))
    return np.array(pair[:1]), np.array(pair[1:])


def _means(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (sums / sizes[:, None]).astype(np.float32), sizes


def nearest_merges(means: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cluster that each of ``rows [m]`` is best merged with, of equals the first, and what it adds.

    ``means [M, D]`` float32, ``sizes [M]``. Returns int64 ``[m]`` and float32 ``[m]``. Holds m x M costs twice.
    """
    squares = np.einsum("md,md->m", means, means)
    shares = (1 / sizes).astype(np.float32)
    costs = means[rows] @ means.T
    costs *= -2
    costs += squares
    costs += squares[rows, None]
    np.maximum(costs, 0, out=costs)
    costs /= shares + shares[rows, None]
    own = np.arange(len(rows))
    costs[own, rows] = np.inf
    nearest = costs.argmin(axis=1)
    return nearest, costs[own, nearest]

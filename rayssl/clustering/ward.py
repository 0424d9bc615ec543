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


def merge_table(sums: np.ndarray, sizes: np.ndarray, clusters: int, near: Near) -> np.ndarray:
    """Merges M clusters into K = ``clusters``: the new number of each, int32 ``[M]``, numbered as they first occur.

    ``sums [M, D]`` float64 of the members, and their numbers ``sizes [M]``, all at least 1. Raises ValueError unless
    1 <= K <= M. Needs 16 M D bytes besides ``sums``.
    """
    if not 1 <= clusters <= len(sums):
        raise ValueError(f"clusters must be in 1..{len(sums)}, the number of those that are merged, got {clusters}")
    merges = len(sums) - clusters
    costs, kept, gone = _tree(sums.copy(), sizes.astype(np.int64), merges, near)
    first = np.argsort(costs, kind="stable")[:merges]
    into = np.arange(len(sums))
    into[gone[first]] = kept[first]  # each is merged into a lower one, once at the most
    while not np.array_equal(into, further := into[into]):
        into = further
    table: np.ndarray = np.unique(into, return_inverse=True)[1].astype(np.int32)
    return table


def _tree(sums: np.ndarray, sizes: np.ndarray, merges: int, near: Near) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At least the ``merges`` cheapest merges of the whole tree: costs, and the numbers of both clusters (kept, gone).

    ``sums`` and ``sizes`` change in place.
    """
    numbers = np.arange(len(sums))
    nearest, costs = near(*_means(sums, sizes), numbers)
    made: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(numbers) > 1 and not _complete(made, merges, costs.min()):
        low, high = _pairs(nearest, costs)
        made.append((costs[low], numbers[low], numbers[high]))
        sums[low] += sums[high]
        sizes[low] += sizes[high]
        touched, stays = np.zeros(len(numbers), dtype=bool), np.ones(len(numbers), dtype=bool)
        touched[low] = touched[high] = True
        stays[high] = False
        stale = (touched | touched[nearest])[stays]
        place = np.cumsum(stays) - 1
        sums, sizes, numbers = sums[stays], sizes[stays], numbers[stays]
        nearest, costs = place[nearest[stays]], costs[stays]
        if len(numbers) > 1:
            again = np.flatnonzero(stale)
            nearest[again], costs[again] = near(*_means(sums, sizes), again)
    if not made:
        return costs[:0], numbers[:0], numbers[:0]
    joined = [np.concatenate(each) for each in zip(*made, strict=True)]
    return joined[0], joined[1], joined[2]


def _complete(made: list[tuple[np.ndarray, np.ndarray, np.ndarray]], merges: int, least: float) -> bool:
    """Whether the ``merges`` cheapest merges are among those ``made``; ``least`` is the cost of the cheapest left.

    Costs only grow towards the root, so nothing cheaper will come.
    """
    costs = np.concatenate([np.zeros(0), *(each[0] for each in made)])
    return len(costs) >= merges and (merges == 0 or least >= np.partition(costs, merges - 1)[merges - 1])


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

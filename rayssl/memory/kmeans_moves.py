"""Clusters taken from where they are not needed to where one is missing: what Lloyd's iterations cannot do.

A cluster's part in the objective is the norm of the sum of its points. Two clusters that become one lose the difference
between their two norms and that of their sum; one that becomes two gains the same for its halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from rayssl.memory.bank import unit_rows

_MARGIN = 1.2  # gain over loss that a move must promise, as halves of noise gain something too
_MEMBERS = 4096  # of a cluster that its halving is judged by
_TOGETHER = 64  # clusters that one task halves


def move_clusters(
    x: np.ndarray,
    labels: np.ndarray,
    sums: np.ndarray,
    centroids: np.ndarray,
    near: np.ndarray,
    order: np.ndarray,
    map_in_order: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
) -> int:
    """Joins pairs of clusters and halves others, wherever the second gains more than the first loses.

    ``x [n, D]`` with ``labels [n]``; ``order [n]``: its rows sorted by label; ``sums, centroids [K, D]`` of the
    clusters; ``near [K, m]``: which may be joined to which. Changes labels (of clusters that were joined to another)
    and centroids in place. No cluster takes part twice. Returns how many moves that were.
    """
    counts = np.bincount(labels, minlength=len(sums))
    norms = np.linalg.norm(sums, axis=1)
    losses, partners = _losses(norms, centroids, near)
    losses[counts == 0] = 0.0
    # a half's norm is at most its size, so the gain at most this
    most = np.where(counts >= 4, counts - norms, 0.0)
    halved = np.argsort(-most, kind="stable")[: max(1, len(sums) // 4)]
    ends = np.cumsum(counts)
    groups = [order[ends[k] - counts[k] : ends[k]] for k in halved.tolist()]
    tasks = [
        (groups[i : i + _TOGETHER], centroids[halved[i : i + _TOGETHER]]) for i in range(0, len(groups), _TOGETHER)
    ]
    found = list(map_in_order(lambda task: _halve_all(x, *task), tasks))
    gains = np.concatenate([gain for gain, _ in found])
    halves = np.concatenate([both for _, both in found])
    moves = _match(losses, partners, counts, halved, gains)
    for source, partner, place in moves:
        if counts[source]:
            joined = sums[source] + sums[partner]
            centroids[partner] = unit_rows((joined if joined.any() else centroids[partner])[None])[0]
            labels[order[ends[source] - counts[source] : ends[source]]] = partner
        centroids[[halved[place], source]] = unit_rows(halves[place])
    return len(moves)


def _losses(norms: np.ndarray, centroids: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each cluster's best joining with one of its ``near [K, m]`` loses, and with which: both ``[K]``."""
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
    """(cluster that goes, cluster it joins, place in ``halved`` of the one it halves): cheapest with most gainful."""
    moves: list[tuple[int, int, int]] = []
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
        moves.append((source, partner, place))
    return moves


def _halve_all(x: np.ndarray, groups: list[np.ndarray], centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each group of row numbers of ``x`` the gain of halving it, and the sums of both halves ``[groups, 2, D]``."""
    gains = np.zeros(len(groups))
    halves = np.zeros((len(groups), 2, x.shape[1]))
    for place, (group, centroid) in enumerate(zip(groups, centroids, strict=True)):
        if len(group) >= 4:
            some = group[:: -(-len(group) // _MEMBERS)]
            gain, halves[place] = _halve(unit_rows(x[some]), centroid)
            gains[place] = gain * len(group) / len(some)
    return gains, halves


def _halve(rows: np.ndarray, centroid: np.ndarray) -> tuple[float, np.ndarray]:
    """Two-means of ``rows [n, D]`` from outlier and centroid: gain (0 if all stay one) and sums ``[2, D]``."""
    outlier = rows[(rows @ centroid).argmin()]
    first = rows @ (outlier - centroid) > 0
    total = rows.sum(axis=0)
    for _ in range(3):
        one = first.astype(np.float32) @ rows
        both = np.stack([one, total - one])
        norms = np.linalg.norm(both, axis=1)
        if not norms.all():
            break
        first = rows @ (both[0] / norms[0] - both[1] / norms[1]) > 0
    one = first.astype(np.float32) @ rows
    both = np.stack([one, total - one])
    if first.all() or not first.any():
        return 0.0, both
    return float(np.linalg.norm(both, axis=1).sum() - np.linalg.norm(total)), both

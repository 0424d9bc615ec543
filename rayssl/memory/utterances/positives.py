"""SSPS sampling (SSPS paper, Eq. 3-6): from an anchor to another utterance of, presumably, the same speaker.

Pure, vectorised functions of the anchors' ids and random keys, the current clustering, and the positives queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayssl.clustering.similarity import most_similar
from rayssl.memory.utterances.queue import PositivesQueue
from rayssl.random.draws import uniform_np

_CLUSTER, _MEMBER = 0, 1  # streams of the two choices


@dataclass(frozen=True)
class SampledPositives:
    """For B anchors: sampled utterance ``ids [B]`` int64 (-1 none), ``pool [B]`` int64, how many it was drawn from."""

    ids: np.ndarray
    pool: np.ndarray


@dataclass(frozen=True)
class Nearest:
    """For B anchors: utterance ``ids [B, n]`` int64 (-1: none) and their ``similarity [B, n]`` float32."""

    ids: np.ndarray
    similarity: np.ndarray


class Layout:
    """An assignment ``[N]`` int32 (-1: not clustered), with the members of each cluster side by side.

    ``order``: clustered ids sorted by cluster, then id; ``starts [K+1]``: where each cluster begins in it;
    ``place [N]``: where an id stands in it (-1 if not clustered).
    """

    def __init__(self, assignment: np.ndarray, clusters: int) -> None:
        self.assignment = assignment
        unclustered = int(np.count_nonzero(assignment < 0))
        self.order = np.argsort(assignment, kind="stable")[unclustered:].astype(np.int32)
        sizes = np.bincount(assignment[self.order], minlength=clusters)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.place = np.full(len(assignment), -1, dtype=np.int32)
        self.place[self.order] = np.arange(len(self.order), dtype=np.int32)


def choose_cluster(own: np.ndarray, neighbours: np.ndarray | None, keys: np.ndarray) -> np.ndarray:
    """The cluster each anchor samples from, ``[B]``: its own (Eq. 3), or uniform among its neighbours (Eq. 4-5).

    ``own [B]`` in 0..K-1; ``neighbours [K, M]`` the M nearest other clusters, None for M = 0; ``keys [B]`` uint64.
    """
    if neighbours is None:
        return own
    chosen: np.ndarray = neighbours[own, _pick(uniform_np(keys, _CLUSTER), neighbours.shape[1])]
    return chosen


def sample_cluster(
    ids: np.ndarray,
    layout: Layout,
    neighbours: np.ndarray | None,
    queue: PositivesQueue,
    keys: np.ndarray,
    *,
    skip_empty: bool = False,
) -> SampledPositives:
    """Uniform among the members of the chosen cluster that are in the queue, never the anchor itself (Eq. 6).

    ``ids, keys [B]``. The cluster is chosen before the queue is looked at, as in the paper: an anchor whose cluster has
    no member in the queue finds nothing; an anchor that is not clustered finds nothing either. With ``skip_empty`` only
    neighbours with members in the queue are chosen from. Costs as much as the members of all chosen clusters.
    """
    own = layout.assignment[ids]
    clustered = own >= 0
    safe = np.where(clustered, own, 0)
    if skip_empty and neighbours is not None:
        options = neighbours[safe]
        occupied = _Present(layout, queue, options).counts(options) > 0
        nth = _pick(uniform_np(keys, _CLUSTER), occupied.sum(axis=1))
        column = np.argmax(np.cumsum(occupied, axis=1) > nth[:, None], axis=1)
        chosen = options[np.arange(len(ids)), column]
    else:
        chosen = choose_cluster(safe, neighbours, keys)
    present = _Present(layout, queue, chosen)
    itself = (own == chosen) & (queue.slot[ids] >= 0)
    pool = np.where(clustered, present.counts(chosen) - itself, 0)
    nth = _pick(uniform_np(keys, _MEMBER), pool)
    # the anchor is one of its cluster's members: those after it move up by one
    nth += itself & (nth >= present.rank(ids, chosen))
    found = pool > 0
    sampled = np.full(len(ids), -1, dtype=np.int64)
    sampled[found] = present.nth(chosen[found], nth[found])
    return SampledPositives(sampled, pool)


def sample_nearest(ids: np.ndarray, near: Nearest, count: int, keys: np.ndarray) -> SampledPositives:
    """SSPS-NN: uniform among the ``count`` utterances in the queue with the nearest references, anchor excluded.

    ``ids, keys [B]``; ``near``: at least the ``count + 1`` nearest of each anchor that has a reference, as
    `nearest_rows` and `merge_nearest` find them. An anchor for which there are none finds nothing.
    """
    usable = (near.ids != ids[:, None]) & (near.ids >= 0)
    usable &= np.cumsum(usable, axis=1) <= count
    pool = usable.sum(axis=1)
    # by id, so that the order of equally near ones does not matter
    ranked = np.sort(np.where(usable, near.ids, np.iinfo(np.int64).max), axis=1)
    picked = ranked[np.arange(len(ids)), _pick(uniform_np(keys, _MEMBER), pool)]
    return SampledPositives(np.where(pool > 0, picked, -1), pool)


def nearest_rows(queries: np.ndarray, rows: np.ndarray, ids: np.ndarray, count: int) -> Nearest:
    """The ``count`` of ``rows [n, D]``, whose utterances are ``ids [n]``, most similar to each of ``queries [B, D]``.

    All rows of norm 1. Exact: B * n * D multiplications and 4 B * n bytes.
    """
    similarity = queries @ rows.astype(np.float32).T
    columns = most_similar(similarity, min(count, len(rows)))
    return Nearest(ids[columns].astype(np.int64), np.take_along_axis(similarity, columns, axis=1))


def merge_nearest(parts: Sequence[Nearest], anchors: int, count: int) -> Nearest:
    """The ``count`` nearest for each of the ``anchors`` B among all ``parts``; of equal ones those of the lowest ids.

    Where there are fewer than ``count``, the last places have the id -1.
    """
    ids = np.concatenate([np.full((anchors, count), -1, dtype=np.int64), *(part.ids for part in parts)], axis=1)
    nothing = np.full((anchors, count), -np.inf, dtype=np.float32)
    similarity = np.concatenate([nothing, *(part.similarity for part in parts)], axis=1)
    best = np.lexsort((ids, -similarity), axis=1)[:, :count]
    return Nearest(np.take_along_axis(ids, best, axis=1), np.take_along_axis(similarity, best, axis=1))


def sample_speaker(
    ids: np.ndarray, speakers: Layout, recordings: np.ndarray, queue: PositivesQueue, keys: np.ndarray
) -> SampledPositives:
    """The bound of SSPS: uniform among the queue's utterances of the anchor's true speaker in other recordings.

    ``ids, keys [B]``; ``speakers``: the utterances laid out by speaker; ``recordings [N]``, -1 where unknown: then any
    utterance but the anchor will do. An anchor of unknown speaker finds nothing.
    """
    own = speakers.assignment[ids]
    begin = np.where(own >= 0, speakers.starts[own], 0)
    size = np.where(own >= 0, speakers.starts[own + 1] - begin, 0)
    anchor = np.repeat(np.arange(len(ids)), size)
    member = speakers.order[np.arange(int(size.sum())) + np.repeat(begin - (np.cumsum(size) - size), size)]
    elsewhere = (recordings[member] != recordings[ids[anchor]]) | (recordings[member] < 0)
    usable = elsewhere & (member != ids[anchor]) & (queue.slot[member] >= 0)
    pool = np.bincount(anchor[usable], minlength=len(ids)).astype(np.int64)
    found = pool > 0
    nth = np.cumsum(pool) - pool + _pick(uniform_np(keys, _MEMBER), pool)
    sampled = np.full(len(ids), -1, dtype=np.int64)
    sampled[found] = member[usable][nth[found]]
    return SampledPositives(sampled, pool)


class _Present:
    """Which members of some clusters are in the queue; found out once, for several calls."""

    def __init__(self, layout: Layout, queue: PositivesQueue, clusters: np.ndarray) -> None:
        self._layout = layout
        self._clusters = np.unique(clusters)
        begin, end = layout.starts[self._clusters], layout.starts[self._clusters + 1]
        ends = np.cumsum(end - begin)
        self._offsets = np.concatenate([[0], ends])
        self._begin = begin
        total = int(self._offsets[-1])
        self._members = layout.order[np.arange(total) + np.repeat(begin - self._offsets[:-1], end - begin)]
        self._before = np.zeros(total + 1, dtype=np.int64)  # how many present ones stand before each member
        np.cumsum(queue.slot[self._members] >= 0, out=self._before[1:])

    def counts(self, clusters: np.ndarray) -> np.ndarray:
        """Number of members in the queue, for each of ``clusters`` (any shape)."""
        index = np.searchsorted(self._clusters, clusters)
        count: np.ndarray = self._before[self._offsets[index + 1]] - self._before[self._offsets[index]]
        return count

    def rank(self, ids: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """How many present members of ``clusters [B]`` stand before ``ids [B]``; meaningless where not a member."""
        index = np.searchsorted(self._clusters, clusters)
        where = np.clip(self._layout.place[ids] - self._begin[index] + self._offsets[index], 0, len(self._members))
        before: np.ndarray = self._before[where] - self._before[self._offsets[index]]
        return before

    def nth(self, clusters: np.ndarray, n: np.ndarray) -> np.ndarray:
        """The ``n``-th (from 0) present member of each of ``clusters [B]``, by id."""
        first = self._before[self._offsets[np.searchsorted(self._clusters, clusters)]]
        member: np.ndarray = self._members[np.searchsorted(self._before, first + n + 1) - 1]
        return member.astype(np.int64)


def _pick(u: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """An index 0..count-1 from ``u`` in [0, 1); float64 never rounds u * count up to count. 0 where count is 0."""
    return (u * count).astype(np.int64)

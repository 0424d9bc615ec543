"""When the references are clustered, and by whom: every store has a part in it, and the index takes the result.

*Blocking*: a refresh clusters the references there are, and brings the result into use. *Overlapped*: from the second
refresh on, a refresh brings into use what was computed from the references as they were at the refresh before, and
begins the next clustering, from a copy of the references, while training goes on. The first refresh blocks, and the
second keeps its result, for there is nothing newer by that rule. Both are repeatable to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any

import numpy as np

from rayssl.clustering.kmeans import cluster_parts, nearest_centroids
from rayssl.clustering.partitions import Partitions
from rayssl.clustering.whitening import Whitening
from rayssl.memory.utterances.index import Clustering, Index
from rayssl.memory.utterances.settings import MemorySettings


class _Parts:
    """The parts that the stores hold, as `rayssl.clustering.kmeans.cluster_parts` asks them."""

    def __init__(self, ask: Partitions) -> None:
        self._ask = ask

    def __call__(self, method: str, /, *arguments: Any) -> list[Any]:
        return self._ask("part", method, *arguments)

    def each(self, method: str, /, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._ask.each("part", [(method, *own) for own in arguments])


class Clusterer:
    """Refreshes ``index`` from the stores, whose methods ``ask`` calls, in their order."""

    def __init__(self, index: Index, ask: Partitions) -> None:
        self._index = index
        self._ask = ask
        self._running: Future[Clustering] | None = None

    def refresh(self, epoch: int) -> dict[str, float]:
        """One refresh; see `SpeakerMemory.refresh`."""
        started = time.perf_counter()
        index, knobs = self._index, self._index.knobs
        if not knobs.clustered:
            if knobs.whiten:
                index.whitening = _whitening(self._ask)
                self._ask("whiten", index.whitening)
            index.adopt(None)
        elif not knobs.overlapped or not index.version:
            filled = _begin(knobs, self._ask, copy=False)
            index.adopt(_cluster(knobs, self._ask, filled, epoch, self._initial()))
        else:
            self.settle()
            if index.pending is not None:
                index.adopt(index.pending)
                index.pending = None
            filled = _begin(knobs, self._ask, copy=True)
            self._running = _in_thread(_cluster, knobs, self._ask, filled, epoch, self._initial())
        figures = {"version": float(index.version), "seconds": time.perf_counter() - started}
        return figures | index.judged()

    def settle(self) -> None:
        """Waits for the clustering under way, if any, so that the index holds all there is to be saved."""
        if self._running is not None:
            running, self._running = self._running, None
            self._index.pending = running.result()

    def forget(self) -> None:
        """Waits for the clustering under way, if any, and drops it: another state has been loaded."""
        if self._running is not None:
            running, self._running = self._running, None
            running.exception()

    def _initial(self) -> np.ndarray | None:
        warm = self._index.knobs.warm_start and self._index.version
        return self._index.clustering.centroids if warm else None


def _begin(knobs: MemorySettings, ask: Partitions, copy: bool) -> np.ndarray:
    """The stores hold on to the references there are; who has one, bool ``[N]``."""
    whitening = _whitening(ask) if knobs.whiten else None
    try:
        filled: np.ndarray = np.concatenate(ask("begin", whitening, copy))
    except BaseException:
        ask("finish")  # where it has begun
        raise
    return filled


def _cluster(
    knobs: MemorySettings, ask: Partitions, filled: np.ndarray, epoch: int, initial: np.ndarray | None
) -> Clustering:
    parts = _Parts(ask)
    try:
        found = cluster_parts(
            parts,
            knobs.clusters,
            mode=knobs.kmeans if knobs.device == "cpu" else "exact",
            iterations=knobs.iterations,
            seed=[knobs.seed, epoch],
            initial=initial,
            threads=knobs.threads,
        )
        labels = np.concatenate(parts("assignment"))
    finally:
        ask("finish")
    assignment = np.full(len(filled), -1, dtype=np.int32)
    assignment[filled] = labels
    nearest = np.zeros((knobs.clusters, 0), dtype=np.int32)
    if knobs.neighbours:
        nearest = nearest_centroids(found.centroids, knobs.neighbours)
    return Clustering(assignment, found.centroids, nearest, found.objective, found.repaired)


def _whitening(ask: Partitions) -> Whitening:
    """Fitted to all references, piece by piece: the same whoever holds the pieces."""
    return Whitening.of_parts(part for store in ask("moments") for part in store)


def _in_thread(function: Callable[..., Clustering], *arguments: Any) -> Future[Clustering]:
    future: Future[Clustering] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="clustering", daemon=True).start()
    return future

"""When the references are clustered. Every store takes part in it, and the index takes the result.

*Blocking*: a refresh clusters the references there are, and brings the result into use.

*Overlapped*: from the second refresh on, a refresh brings into use what was computed from the references as they were
at the refresh before. Then it starts the next clustering, from a copy of the references, while training continues. The
first refresh blocks. The second keeps the result of the first, because by this rule there is nothing newer.

Both are repeatable to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import ParamSpec

import numpy as np

from rayssl.clustering.kmeans import cluster_parts, nearest_centroids_by
from rayssl.clustering.partition import Partition
from rayssl.clustering.similarity import nearest_centroids
from rayssl.clustering.whitening import Whitening
from rayssl.memory.pieces import Piece
from rayssl.memory.utterances.index import Clustering, Index, pending
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.stores import RowStores

P = ParamSpec("P")


class Clusterer:
    """Refreshes ``index`` from the references in all ``stores``."""

    def __init__(self, index: Index, stores: RowStores) -> None:
        self._index = index
        self._stores = stores
        self._running: Future[Clustering] | None = None

    def refresh(self, epoch: int) -> dict[str, float]:
        """One refresh; see `rayssl.memory.utterances.memory.UtteranceMemory.refresh`."""
        started = time.perf_counter()
        index, settings = self._index, self._index.settings
        if not settings.clustered:
            if settings.whiten:
                index.whitening = _whitening(self._stores)
                self._stores.whiten(index.whitening)
            index.adopt(None)
        elif not settings.overlapped or not index.version:
            filled = _begin(settings, self._stores, copy=False)
            index.adopt(_cluster(settings, self._stores, filled, epoch, self._initial()))
        else:
            self.settle()
            if index.pending is not None:
                index.adopt(index.pending)
                index.pending = None
            filled = _begin(settings, self._stores, copy=True)
            self._running = _in_thread(_cluster, settings, self._stores, filled, epoch, self._initial())
        figures = {"version": float(index.version), "seconds": time.perf_counter() - started}
        return figures | index.judged()

    def settle(self) -> None:
        """Waits for the clustering under way, if any. Then the index holds everything that has to be saved."""
        if self._running is not None:
            running, self._running = self._running, None
            self._index.pending = running.result()

    def snapshot(self) -> Iterator[Piece]:
        """The index as it is now, in one piece. Who takes the piece waits for the clustering that is under way now."""
        state, running = self._index.snapshot(), self._running

        def made() -> Iterator[Piece]:
            yield Piece("index", 0, 0, 0, state() if running is None else state() | pending(running.result()))

        return made()

    def forget(self) -> None:
        """Waits for the clustering under way, if any, and drops its result, because another state has been loaded."""
        if self._running is not None:
            running, self._running = self._running, None
            running.exception()

    def _initial(self) -> np.ndarray | None:
        warm = self._index.settings.warm_start and self._index.version
        return self._index.clustering.centroids if warm else None


def _begin(settings: MemorySettings, stores: RowStores, *, copy: bool) -> np.ndarray:
    """Makes all stores prepare the clustering of the references they have; which utterances have one, bool ``[N]``."""
    whitening = _whitening(stores) if settings.whiten else None
    try:
        return np.concatenate(stores.begin(whitening, copy=copy))
    except BaseException:
        stores.finish()  # some may have begun
        raise


def _cluster(
    settings: MemorySettings, stores: RowStores, filled: np.ndarray, epoch: int, initial: np.ndarray | None
) -> Clustering:
    try:
        found = cluster_parts(
            stores.partitions,
            settings.clusters,
            merged_from=settings.merged_from,
            mode=settings.kmeans if settings.device == "cpu" else "exact",
            iterations=settings.iterations,
            seed=[settings.seed, epoch],
            initial=initial,
            threads=settings.threads,
        )
        labels = stores.partitions.every(Partition.assignment)
        nearest = np.zeros((settings.clusters, 0), dtype=np.int32)
        if settings.neighbours and settings.device != "cpu":
            nearest = nearest_centroids_by(stores.partitions, len(labels), found.centroids, settings.neighbours)
    finally:
        stores.finish()
    assignment = np.full(len(filled), -1, dtype=np.int32)
    assignment[filled] = np.concatenate(labels)
    if settings.neighbours and settings.device == "cpu":
        nearest = nearest_centroids(found.centroids, settings.neighbours)
    return Clustering(assignment, found.centroids, nearest, found.objective, found.repaired, found.suggested)


def _whitening(stores: RowStores) -> Whitening:
    """Fitted to all references, piece by piece, so that the division into stores changes nothing."""
    return Whitening.of_parts(piece for store in stores.moments() for piece in store)


def _in_thread(function: Callable[P, Clustering], /, *arguments: P.args, **options: P.kwargs) -> Future[Clustering]:
    future: Future[Clustering] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="clustering", daemon=True).start()
    return future

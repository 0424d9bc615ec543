"""The memory of SSPS: references, positives and one clustering for the whole job; recall, remember, refresh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np

from rayssl.memory.pieces import Kind, Piece, Read
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays, Shares, write_request
from rayssl.memory.utterances.index import Index
from rayssl.memory.utterances.positives import merge_nearest
from rayssl.memory.utterances.refresh import Clusterer
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.store import Store
from rayssl.memory.utterances.stores import LocalStores


class UtteranceMemory:
    """The whole memory in one process: an `Index`, and its rows in one `Store` or, with the same results, several."""

    def __init__(self, settings: MemorySettings, *, shards: int = 1) -> None:
        self.settings = settings
        self.index = Index(self.settings)
        self.stores = [Store(self.settings, shard, shards) for shard in range(shards)]
        self._shares = Shares(self.settings, shards)
        self._clusterer = Clusterer(self.index, LocalStores(self.stores))

    @property
    def version(self) -> int:
        """Of the clustering: 0 before the first refresh."""
        return self.index.version

    def recall(self, ids: np.ndarray, *, epoch: int) -> RecallArrays:
        """Sampled positives for the anchors ``ids [B]`` (any integers); nothing is found before the first refresh."""
        ids, near = self.index.checked(ids), None
        if self.version and self.settings.sampling == "nn":
            sent = zip(self.stores, self._shares.messages(queries=ids), strict=True)
            queries = self._shares.queries(ids, [store.answer(message) for store, message in sent])
            pool = self.index.pool()
            found = [store.nearest(queries, pool) for store in self.stores]
            near = merge_nearest(found, len(ids), self.settings.neighbours + 1)
        draw = self.index.draw(ids, epoch, near)
        sent = zip(self.stores, self._shares.messages(draw=draw), strict=True)
        return self._shares.recall(draw, [store.answer(message) for store, message in sent])

    def remember(self, what: RememberArrays) -> None:
        """Stores what ``what`` holds, row after row. Calls for the parts of a batch, in order, equal one call for all.

        A reference or positive with a value that is not finite is not stored, and counted in the metrics ("rejected").
        """
        request = write_request(self.settings, what)
        slots = self.index.remember(request)
        for store, message in zip(self.stores, self._shares.messages(what, request, slots), strict=True):
            store.write(message)

    def refresh(self, epoch: int) -> dict[str, float]:
        """Brings another clustering into use, see `rayssl.memory.utterances.refresh`, and compares it with the labels.

        Returns version, seconds, objective (mean cosine), repaired, clusters_used; where clusters were merged
        clusters_suggested (`rayssl.clustering.ward.suggested_clusters`); cluster_smallest, cluster_median,
        cluster_largest (utterances); empty_clusters, the share of clusters without an utterance; from the second
        clustering on stability, the normalised mutual information with the one before (0..1); and where there are
        labels nmi_speaker, nmi_recording. Utterances without a reference belong to no cluster. Raises ValueError when
        fewer references are filled than there are clusters.
        """
        return self._clusterer.refresh(epoch)

    def centroids(self) -> np.ndarray:
        """Those of the clustering in use, float32 ``[K, Dr]`` of norm 1, in the axes that were clustered."""
        return self.index.clustering.centroids

    def metrics(self, reset: bool = True) -> dict[str, float]:
        """Rates over the anchors recalled since the last reset; a rate over nothing (no labels) is left out.

        coverage: found / anchors; pool_size: mean number of utterances to draw from; speaker_accuracy and
        recording_accuracy of what was sampled; useful_rate: their difference; queue_fill, reference_fill: 0..1 now;
        clusters_used: fraction of clusters with members in the queue now; rejected: rows that were not finite.
        """
        return self.index.metrics(reset)

    def snapshot(self) -> Iterator[Piece]:
        """The whole state as it is now, a piece at a time; it may be read in another thread while the memory changes.

        The first piece, the index, waits for a clustering that is under way now: its result is part of the state.
        """
        return chain(self._clusterer.snapshot(), *[store.snapshot() for store in self.stores])

    def restore(self, index: Mapping[str, np.ndarray], read: Read) -> None:
        """Continues where a `snapshot` was taken, by any number of shards: ``index`` are the arrays of that piece.

        Raises ValueError, changing nothing, if they do not fit.
        """
        self.index.check(index)
        for store in self.stores:
            store.restore(read)
        self._clusterer.forget()
        self.index.load_state_dict(index)
        for store in self.stores:
            store.commit(self.index.whitening if self.version else None)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The whole state as one set of arrays, copied: the same whatever slots and stores the rows are in.

        The positives are oldest first, n <= |Q'| of them. For tests and small memories; others are saved by `snapshot`.
        """
        self._clusterer.settle()
        state = {name: array.copy() for name, array in self.index.state_dict().items()}
        by_age = np.argsort(state.pop("positives.ages"))
        rows = [store.rows() for store in self.stores]
        state["references.rows"] = np.concatenate([own["references"] for own in rows])
        state["positives.rows"] = np.concatenate([own["positives"] for own in rows])[by_age]
        state["positives.ids"] = state["positives.ids"][by_age]
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues exactly where ``state_dict`` was taken. Raises ValueError, changing nothing, if it does not fit."""
        missing = sorted({"references.rows", "positives.rows", "positives.ids", "references.filled"} - state.keys())
        if missing:
            raise ValueError(f"memory state: missing {missing}")
        ids = state["positives.ids"]
        for name, count in (("references.rows", self.settings.utterances), ("positives.rows", len(ids))):
            if len(state[name]) != count:
                raise ValueError(f"memory state: '{name}' is {state[name].dtype} {state[name].shape}, not of {count}")
        index = {name: array for name, array in state.items() if not name.endswith(".rows")}
        index["positives.ages"] = np.arange(len(ids), dtype=np.int32)
        all_rows: dict[Kind, dict[str, np.ndarray]] = {
            "references": {"rows": state["references.rows"], "filled": state["references.filled"]},
            "positives": {"rows": state["positives.rows"], "ids": ids},
        }
        ends = {"references": self.settings.utterances, "positives": len(ids)}

        def read(kind: Kind, first: int, end: int) -> list[Piece]:
            return [Piece(kind, 0, 0, ends[kind], all_rows[kind])]

        self.restore(index, read)

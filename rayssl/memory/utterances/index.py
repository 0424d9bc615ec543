"""The index of a memory decides which utterances are sampled: small flat arrays by utterance and by slot, no rows.

The rows are in one `rayssl.memory.utterances.store.Store` or in several. Index and stores both know a row by its slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rayssl.clustering.similarity import normalized_mutual_information
from rayssl.clustering.whitening import Whitening
from rayssl.memory.utterances.positives import (
    Layout,
    Nearest,
    SampledPositives,
    choose_cluster,
    sample_cluster,
    sample_nearest,
    sample_speaker,
)
from rayssl.memory.utterances.queue import PositivesQueue, Utterances, ages_of
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.random.draws import fold, keys_np

_NEVER_CHANGE = ("clusters.", "pending.", "whitening.")
_COUNTERS = (
    *("anchors", "found", "pool", "rejected"),
    *("speaker_known", "speaker_same", "recording_known", "recording_same"),
)


@dataclass(frozen=True)
class WriteRequest:
    """What B utterances leave behind, without the rows: ``ids [B]`` int64, labels ``[B]`` as far as known, and which
    rows there are and can be stored: bool ``[B]``, None for no rows at all.
    """

    ids: np.ndarray
    speakers: np.ndarray | None = None
    recordings: np.ndarray | None = None
    references: np.ndarray | None = None
    positives: np.ndarray | None = None


@dataclass(frozen=True)
class Draw:
    """The utterances sampled for B anchors: ``found [B]`` bool, ``ids [B]`` int64, and ``slots [B]`` int64 of their
    rows, -1 for none. For centroids and labels there are ``rows [B, D]`` float32 instead of ids and slots.
    """

    found: np.ndarray
    ids: np.ndarray
    slots: np.ndarray
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Clustering:
    """``assignment [N]`` int32 (-1: has no reference), ``centroids [K, Dr]`` and ``nearest [K, M]`` int32, others near
    each; ``objective``: mean cosine; ``repaired``: clusters that had been empty; ``suggested``: how many there should
    be by the tree of those merged, 0 if none were.
    """

    assignment: np.ndarray
    centroids: np.ndarray
    nearest: np.ndarray
    objective: float
    repaired: int
    suggested: int = 0


class Index:
    """Labels, the queue's order, the assignment in use, the next one where it is known already, and counters."""

    def __init__(self, settings: MemorySettings) -> None:
        self.settings = settings
        self.utterances = Utterances(settings.utterances)
        self.queue = PositivesQueue(settings.utterances, settings.queue)
        self.version = 0  # of the clustering: 0 before the first refresh
        self.pending: Clustering | None = None  # what the next refresh brings into use
        self._stability: float | None = None  # how much the clustering in use shares with the one before
        # until the first refresh nothing is whitened: the identity
        self.whitening = Whitening.identity(settings.reference_dim) if settings.compares_whitened else None
        self._counters = np.zeros(len(_COUNTERS), dtype=np.int64)
        self._speakers: Layout | None = None  # the utterances by speaker, until a label changes
        clusters = settings.clusters if settings.clustered else 0
        self._use(
            Clustering(
                np.full(settings.utterances, -1, dtype=np.int32),
                np.zeros((clusters, settings.reference_dim), dtype=np.float32),
                np.zeros((clusters, settings.neighbours), dtype=np.int32),
                0.0,
                0,
            )
        )

    @property
    def clustering(self) -> Clustering:
        """The clustering in use; before the first refresh all clusters are empty."""
        return self._clustering

    def remember(self, what: WriteRequest) -> np.ndarray:
        """Applies a write request; returns the slot of each positive, int64 ``[B]``, -1 where it is not kept."""
        ids = self.checked(what.ids)
        if self.utterances.label(ids, what.speakers, what.recordings):
            self._speakers = None
        if what.references is not None:
            self.utterances.filled[ids[what.references]] = True
            self._add(rejected=int((~what.references).sum()))
        slots = np.full(len(ids), -1, dtype=np.int64)
        if what.positives is not None:
            slots[what.positives] = self.queue.push(ids[what.positives])
            self._add(rejected=int((~what.positives).sum()))
        return slots

    def pool(self) -> np.ndarray:
        """Bits, as of `np.packbits`, of the utterances with a reference and a positive: uint8 ``[N / 8]``."""
        return np.packbits((self.queue.slot >= 0) & self.utterances.filled)

    def draw(self, ids: np.ndarray, epoch: int, near: Nearest | None = None) -> Draw:
        """Samples for the anchors ``ids [B]``; nothing is found before the first refresh.

        ``near`` is needed for the sampling "nn": the M + 1 nearest of each anchor in the `pool`.
        """
        ids = self.checked(ids)
        none = np.full(len(ids), -1, dtype=np.int64)
        if not self.version:
            sample = SampledPositives(none, np.zeros(len(ids), dtype=np.int64))
        elif self.settings.sampling in ("centroid", "label"):
            return self._draw_clusters(ids, epoch)
        else:
            sample = self._sample(ids, self._keys(ids, epoch), near)
        found = sample.ids >= 0
        self._count(ids, sample, found)
        return Draw(found, sample.ids, np.where(found, self.queue.slot[sample.ids], -1).astype(np.int64))

    def _sample(self, ids: np.ndarray, keys: np.ndarray, near: Nearest | None) -> SampledPositives:
        settings = self.settings
        if settings.sampling == "nn":
            assert near is not None
            known = np.where(self.utterances.filled[ids][:, None], near.ids, -1)
            return sample_nearest(ids, Nearest(known, near.similarity), settings.neighbours, keys)
        if settings.sampling == "speaker":
            labels = self.utterances.speakers
            if self._speakers is None:
                self._speakers = Layout(labels.copy(), int(labels.max(initial=-1)) + 1)
            return sample_speaker(ids, self._speakers, self.utterances.recordings, self.queue, keys)
        return sample_cluster(ids, self._layout, self._neighbours(), self.queue, keys, skip_empty=settings.skip_empty)

    def _draw_clusters(self, ids: np.ndarray, epoch: int) -> Draw:
        """A cluster for each anchor: its centroid, or its number."""
        own, none = self._layout.assignment[ids], np.full(len(ids), -1, dtype=np.int64)
        found, rows = own >= 0, np.zeros((len(ids), self.settings.positive_dim), dtype=np.float32)
        chosen = choose_cluster(own[found], self._neighbours(), self._keys(ids, epoch)[found])
        rows[found] = chosen[:, None] if self.settings.sampling == "label" else self._clustering.centroids[chosen]
        self._count(ids, SampledPositives(none, found.astype(np.int64)), found)
        return Draw(found, none, none, rows)

    def _keys(self, ids: np.ndarray, epoch: int) -> np.ndarray:
        return keys_np(fold(self.settings.seed, epoch), ids)

    def _neighbours(self) -> np.ndarray | None:
        return self._clustering.nearest if self.settings.neighbours else None

    def adopt(self, clustering: Clustering | None) -> None:
        """A new version; ``clustering`` comes into use (None where nothing is clustered)."""
        if clustering is not None:
            before, after = self._clustering.assignment, clustering.assignment
            both = (before >= 0) & (after >= 0)
            several = self.version > 0 and both.any()
            self._stability = normalized_mutual_information(before[both], after[both]) if several else None
            self._use(clustering)
        self.version += 1

    def _use(self, clustering: Clustering) -> None:
        self._clustering = clustering
        self._layout = Layout(clustering.assignment, len(clustering.centroids))

    def judged(self) -> dict[str, float]:
        """The assignment in use: objective, repaired, where clusters were merged clusters_suggested, clusters_used, the
        sizes of the smallest, the median and the largest cluster, empty_clusters, from the second clustering on
        stability, and where there are labels nmi_speaker and nmi_recording; see `UtteranceMemory.refresh`. Empty where
        nothing is clustered.
        """
        if not self.settings.clustered:
            return {}
        assignment = self._clustering.assignment
        result = {"objective": self._clustering.objective, "repaired": float(self._clustering.repaired)}
        if self._clustering.suggested:
            result["clusters_suggested"] = float(self._clustering.suggested)
        result["clusters_used"] = self._clusters_used()
        sizes = np.bincount(assignment[assignment >= 0], minlength=self.settings.clusters)
        ends = {"smallest": sizes.min(), "median": np.median(sizes), "largest": sizes.max()}
        result |= {f"cluster_{name}": float(size) for name, size in ends.items()}
        result["empty_clusters"] = float((sizes == 0).mean())
        if self._stability is not None:
            result["stability"] = self._stability
        for kind in ("speaker", "recording"):
            labels = getattr(self.utterances, f"{kind}s")
            known = (labels >= 0) & (assignment >= 0)
            if known.any():
                result[f"nmi_{kind}"] = normalized_mutual_information(assignment[known], labels[known])
        return result

    def metrics(self, reset: bool = True, lost: int = 0) -> dict[str, float]:
        """Rates over the anchors since the last reset, see `UtteranceMemory.metrics`.

        ``lost`` of the anchors that were found had the row of another utterance in their slot: they count as not found.
        """
        count = dict(zip(_COUNTERS, self._counters.tolist(), strict=True))
        result = {
            "queue_fill": self.queue.size / self.queue.capacity,
            "reference_fill": float(self.utterances.filled.mean()),
            "rejected": float(count["rejected"]),
        }
        if count["anchors"]:
            result["coverage"] = (count["found"] - lost) / count["anchors"]
            result["pool_size"] = count["pool"] / count["anchors"]
        for kind in ("speaker", "recording"):
            if count[f"{kind}_known"]:
                result[f"{kind}_accuracy"] = count[f"{kind}_same"] / count[f"{kind}_known"]
        if "speaker_accuracy" in result and "recording_accuracy" in result:
            result["useful_rate"] = result["speaker_accuracy"] - result["recording_accuracy"]
        if self.version and self.settings.clustered:
            result["clusters_used"] = self._clusters_used()
        if reset:
            self._counters[:] = 0
        return result

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """``ids [B]`` as int64; raises ValueError where one is of no utterance."""
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.settings.utterances:
            raise ValueError(
                f"utterance ids must lie in 0..{self.settings.utterances - 1}, got {ids.min()}..{ids.max()}"
            )
        return ids

    def _count(self, ids: np.ndarray, sample: SampledPositives, found: np.ndarray) -> None:
        self._add(anchors=len(ids), found=int(found.sum()), pool=int(sample.pool.sum()))
        drawn = sample.ids >= 0
        for kind in ("speaker", "recording"):
            labels = getattr(self.utterances, f"{kind}s")
            mine, other = labels[ids[drawn]], labels[sample.ids[drawn]]
            known = (mine >= 0) & (other >= 0)
            self._add(**{f"{kind}_known": int(known.sum()), f"{kind}_same": int((known & (mine == other)).sum())})

    def _add(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counters[_COUNTERS.index(name)] += count

    def _clusters_used(self) -> float:
        clusters, present = self.settings.clusters, self._layout.assignment
        if self.settings.sampling != "label":  # labels are of all utterances, not of those in the queue
            present = present[self.queue.ids[: self.queue.size]]
        return float(np.count_nonzero(np.bincount(present[present >= 0], minlength=clusters)) / clusters)

    # ---- state

    def state_dict(self, *, ages: bool = True) -> dict[str, np.ndarray]:
        """Everything that later calls depend on, but the rows, as views: to be used before the next call.

        The positives are in the order of their slots; ``positives.ages``: how many are older.
        """
        state = {
            **{f"references.{name}": array for name, array in vars(self.utterances).items()},
            "positives.ids": self.queue.ids[: self.queue.size],
            **({"positives.ages": ages_of(self.queue.written())} if ages else {}),
            **_named("clusters", self._clustering),
            "clusters.version": np.array(self.version, dtype=np.int64),
            "counters": self._counters,
        }
        if self.whitening is not None:
            state |= {"whitening.mean": self.whitening.mean, "whitening.map": self.whitening.map}
        return state if self.pending is None else state | pending(self.pending)

    def snapshot(self) -> Callable[[], dict[str, np.ndarray]]:
        """A function that gives the `state_dict` of this moment, in any thread, while this index changes.

        What takes long, the sort by age, is done when it is called.
        """
        views = self.state_dict(ages=False)
        # arrays of a clustering never change once they are made
        state = {name: array if name.startswith(_NEVER_CHANGE) else array.copy() for name, array in views.items()}
        written = self.queue.written()
        return lambda: {**state, "positives.ages": ages_of(written)}

    def check(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError, naming what does not fit, unless `load_state_dict` could take ``state``."""
        expected = {name: array for name, array in self.state_dict().items() if not name.startswith("pending.")}
        if any(name.startswith("pending.") for name in state):  # whether or not this memory overlaps
            expected |= pending(self._clustering)
        missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
        if missing or unexpected:
            raise ValueError(f"memory state: missing {missing}, unexpected {unexpected}")
        ids, ages = state["positives.ids"], state["positives.ages"]
        for name, own in expected.items():
            shape = (len(ids), *own.shape[1:]) if name.startswith("positives.") else own.shape
            given = state[name]
            if given.shape != shape or given.dtype != own.dtype:
                raise ValueError(f"memory state: '{name}' is {given.dtype} {given.shape}, expected {own.dtype} {shape}")
        if len(ids) > self.queue.capacity:
            raise ValueError(f"memory state: 'positives.ids' holds {len(ids)}, the queue {self.queue.capacity}")
        if len(np.unique(self.checked(ids))) != len(ids) or not np.array_equal(np.sort(ages), np.arange(len(ids))):
            raise ValueError("memory state: an utterance comes twice in 'positives.ids', or two have the same age")
        for name in ("clusters", "pending"):
            if (state.get(f"{name}.assignment", np.zeros(0)) >= len(self._clustering.centroids)).any():
                raise ValueError(f"memory state: '{name}.assignment' names a cluster that does not exist")

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues where ``state``, which `check` accepts, was taken."""
        for name, own in vars(self.utterances).items():
            own[:] = state[f"references.{name}"]
        self.queue.replace(state["positives.ids"], state["positives.ages"])
        self._use(_clustering(state, "clusters"))
        waiting = self.settings.overlapped and "pending.assignment" in state
        self.pending = _clustering(state, "pending") if waiting else None
        self.version = int(state["clusters.version"])
        if self.whitening is not None:
            self.whitening = Whitening(state["whitening.mean"].copy(), state["whitening.map"].copy())
        self._speakers = None
        self._counters = state["counters"].copy()


def pending(clustering: Clustering) -> dict[str, np.ndarray]:
    """The part of `Index.state_dict` for ``clustering``, which the next refresh brings into use."""
    return _named("pending", clustering)


def _named(prefix: str, clustering: Clustering) -> dict[str, np.ndarray]:
    return {
        f"{prefix}.assignment": clustering.assignment,
        f"{prefix}.centroids": clustering.centroids,
        f"{prefix}.nearest": clustering.nearest,
        f"{prefix}.figures": np.array(
            [clustering.objective, clustering.repaired, clustering.suggested], dtype=np.float64
        ),
    }


def _clustering(state: Mapping[str, np.ndarray], prefix: str) -> Clustering:
    objective, *counts = state[f"{prefix}.figures"].tolist()  # one count in states of before clusters were merged
    assignment, centroids, nearest = (
        state[f"{prefix}.{name}"].copy() for name in ("assignment", "centroids", "nearest")
    )
    return Clustering(assignment, centroids, nearest, objective, *(int(count) for count in counts))

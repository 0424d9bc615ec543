"""The memory of SSPS: references, positives and one clustering for the whole job; recall, remember, refresh."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rayssl.draws import fold, keys_np
from rayssl.memory.bank import PositivesQueue, References
from rayssl.memory.kmeans import Mode, cluster, nearest_centroids, normalized_mutual_information
from rayssl.memory.positives import Layout, Sample, choose_cluster, sample_cluster, sample_nearest, sample_speaker
from rayssl.memory.whitening import Whitening

Sampling = Literal["cluster", "nn", "centroid", "speaker"]
_UNCLUSTERED = ("nn", "speaker")
_COUNTERS = (
    *("anchors", "found", "pool", "rejected"),
    *("speaker_known", "speaker_same", "recording_known", "recording_same"),
)


@dataclass(frozen=True)
class Recall:
    """What B anchors are given: ``rows [B, De]`` float32 (zero where not found), ``found [B]`` bool, ``ids [B]`` int64.

    ``ids`` is the sampled utterance, -1 where there is none (not found, or the row is a centroid).
    """

    rows: np.ndarray
    found: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Remember:
    """What B utterances leave behind; anything but the ids may be absent.

    ``ids [B]`` int64; ``references [B, Dr]`` and ``positives [B, De]`` float32; ``speakers, recordings [B]`` int32 with
    -1 for unknown, used for metrics and by the sampling "speaker" only.
    """

    ids: np.ndarray
    references: np.ndarray | None = None
    positives: np.ndarray | None = None
    speakers: np.ndarray | None = None
    recordings: np.ndarray | None = None


class SpeakerMemory:
    """Self-supervised positive sampling over ``utterances`` N, ids 0..N-1 (methods: SSPS; paper Eq. 3-6).

    ``queue`` |Q'| positives (at least 4 K for good coverage); ``clusters`` K; ``neighbours`` M: 0 samples from the own
    cluster, else from one of the M nearest others, confined with ``skip_empty`` to those with anybody in the queue;
    ``sampling``: "cluster", "nn" (one of the M nearest references in the queue; no clustering), "centroid" (the
    chosen cluster's centroid itself; needs reference_dim == positive_dim), or "speaker" (the true speaker's other
    recordings, by the labels: the bound that the others are compared with; no clustering). ``whiten``: references are
    compared and clustered after a `Whitening` fitted to them at each refresh. ``kmeans``: the mode of
    `rayssl.memory.kmeans.cluster`.
    Draws depend on (seed, epoch, id) alone: asking twice, or in parts, gives the same. Raises ValueError naming the
    knob that cannot be.
    """

    def __init__(
        self,
        *,
        utterances: int,
        reference_dim: int,
        positive_dim: int,
        queue: int,
        clusters: int,
        neighbours: int = 0,
        sampling: Sampling = "cluster",
        iterations: int = 10,
        kmeans: Mode = "fast",
        seed: int = 0,
        skip_empty: bool = False,
        whiten: bool = False,
        reference_dtype: str = "float16",
        threads: int | None = None,
    ) -> None:
        for name, value in (("utterances", utterances), ("queue", queue), ("clusters", clusters)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if sampling not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, got {sampling!r}")
        least = 1 if sampling == "nn" else 0
        if neighbours < least:
            raise ValueError(f"neighbours must be at least {least} for sampling {sampling}, got {neighbours}")
        if sampling not in _UNCLUSTERED and not neighbours < clusters <= utterances:
            raise ValueError(
                f"neighbours < clusters <= utterances must hold, got {neighbours}, {clusters} and {utterances}"
            )
        if sampling == "centroid" and reference_dim != positive_dim:
            raise ValueError(
                f"sampling centroid needs reference_dim equal to positive_dim, got {reference_dim} and {positive_dim}"
            )
        if whiten and sampling == "centroid":
            raise ValueError("whiten: centroids of whitened references are no positives; use another sampling")
        self._sampling = sampling
        self._whiten = whiten
        self._neighbours = neighbours
        self._iterations = iterations
        self._kmeans: Mode = kmeans
        self._seed = seed
        self._skip_empty = skip_empty
        self._threads = threads
        self._clusters = 0 if sampling in _UNCLUSTERED else clusters
        self.references = References(utterances, reference_dim, reference_dtype)
        self.positives = PositivesQueue(utterances, queue, positive_dim)
        self.version = 0  # of the clustering: 0 before the first refresh
        self._centroids = np.zeros((self._clusters, reference_dim), dtype=np.float32)
        self._nearest = np.zeros((self._clusters, neighbours), dtype=np.int32)
        self._layout = Layout(np.full(utterances, -1, dtype=np.int32), self._clusters)
        self._counters = np.zeros(len(_COUNTERS), dtype=np.int64)
        self._speakers: Layout | None = None  # see _by_speaker
        # until the first refresh nothing is whitened: the identity
        self._whitening = Whitening(np.zeros(reference_dim, np.float32), np.eye(reference_dim, dtype=np.float32))
        self._whitened: np.ndarray | None = None  # the references as they are compared, kept up with them

    def recall(self, ids: np.ndarray, *, epoch: int) -> Recall:
        """Sampled positives for the anchors ``ids [B]`` (any integers); nothing is found before the first refresh."""
        ids = self._checked(ids)
        found = np.zeros(len(ids), dtype=bool)
        sample = Sample(np.full(len(ids), -1, dtype=np.int64), np.zeros(len(ids), dtype=np.int64))
        rows = np.zeros((len(ids), self.positives.rows.shape[1]), dtype=np.float32)
        if self.version:
            keys = keys_np(fold(self._seed, epoch), ids)
            nearest = self._nearest if self._neighbours else None
            if self._sampling == "centroid":
                own = self._layout.assignment[ids]
                found = own >= 0
                rows[found] = self._centroids[choose_cluster(own[found], nearest, keys[found])]
                sample = Sample(sample.ids, found.astype(np.int64))
            elif self._sampling == "nn":
                compared = self.references.rows if self._whitened is None else self._whitened
                sample = sample_nearest(ids, compared, self.references.filled, self.positives, self._neighbours, keys)
            elif self._sampling == "speaker":
                sample = sample_speaker(ids, self._by_speaker(), self.references.recordings, self.positives, keys)
            else:
                sample = sample_cluster(ids, self._layout, nearest, self.positives, keys, skip_empty=self._skip_empty)
            if self._sampling != "centroid":
                found = sample.ids >= 0
                rows[found] = self.positives.rows[self.positives.slot[sample.ids[found]]]
        self._count_recall(ids, sample, found)
        return Recall(rows, found, sample.ids)

    def remember(self, what: Remember) -> None:
        """Stores what ``what`` holds, row after row: calls for parts of a batch, in order, equal one for the whole.

        A reference or positive with a value that is not finite is not stored, and counted in the metrics ("rejected").
        """
        ids = self._checked(what.ids)
        self.references.label(ids, what.speakers, what.recordings)
        if what.references is not None:
            finite = self._finite(ids, what.references, self.references.rows.shape[1], "references")
            self.references.write(ids[finite], what.references[finite])
            if self._whitened is not None:
                self._whitened[ids[finite]] = self._whitening(self.references.rows[ids[finite]])
        if what.positives is not None:
            finite = self._finite(ids, what.positives, self.positives.rows.shape[1], "positives")
            self.positives.push(ids[finite], what.positives[finite])

    def refresh(self, epoch: int) -> dict[str, float]:
        """Clusters all references anew (a new version) and judges the clustering where labels are known.

        Returns version, seconds, objective (mean cosine), repaired, clusters_used, and where there are labels
        nmi_speaker, nmi_recording. Utterances without a reference belong to no cluster. Raises ValueError when fewer
        references are filled than there are clusters.
        """
        started = time.perf_counter()
        result: dict[str, float] = {}
        bank = self.references
        filled = np.flatnonzero(bank.filled)
        if self._whiten:
            self._whitening = Whitening.fit(bank.rows if len(filled) == len(bank.rows) else bank.rows[filled])
            self._whitened = self._whitening(bank.rows)
        if self._sampling not in _UNCLUSTERED:
            compared = bank.rows if self._whitened is None else self._whitened
            points = compared if len(filled) == len(compared) else compared[filled]
            found = cluster(
                points,
                self._clusters,
                mode=self._kmeans,
                iterations=self._iterations,
                seed=[self._seed, epoch],
                threads=self._threads,
            )
            assignment = np.full(len(bank.filled), -1, dtype=np.int32)
            assignment[filled] = found.assignment
            if self._neighbours:
                self._nearest = nearest_centroids(found.centroids, self._neighbours)
            self._centroids = found.centroids
            self._layout = Layout(assignment, self._clusters)
            result |= {"objective": found.objective, "repaired": float(found.repaired)}
            result |= {"clusters_used": self._clusters_used()} | self._nmi()
        self.version += 1
        return {"version": float(self.version), "seconds": time.perf_counter() - started} | result

    def metrics(self, reset: bool = True) -> dict[str, float]:
        """Rates over the anchors recalled since the last reset; a rate over nothing (no labels) is left out.

        coverage: found / anchors; pool_size: mean number of utterances to draw from; speaker_accuracy and
        recording_accuracy of what was sampled; useful_rate: their difference; queue_fill, reference_fill: 0..1 now;
        clusters_used: fraction of clusters with anybody in the queue now; rejected: rows that were not finite.
        """
        count = dict(zip(_COUNTERS, self._counters.tolist(), strict=True))
        result = {
            "queue_fill": self.positives.size / self.positives.capacity,
            "reference_fill": float(self.references.filled.mean()),
            "rejected": float(count["rejected"]),
        }
        if count["anchors"]:
            result["coverage"] = count["found"] / count["anchors"]
            result["pool_size"] = count["pool"] / count["anchors"]
        for kind in ("speaker", "recording"):
            if count[f"{kind}_known"]:
                result[f"{kind}_accuracy"] = count[f"{kind}_same"] / count[f"{kind}_known"]
        if "speaker_accuracy" in result and "recording_accuracy" in result:
            result["useful_rate"] = result["speaker_accuracy"] - result["recording_accuracy"]
        if self.version and self._clusters:
            result["clusters_used"] = self._clusters_used()
        if reset:
            self._counters[:] = 0
        return result

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that later calls depend on, as copies. Positives are oldest first, n <= |Q'| of them."""
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues exactly where ``state_dict`` was taken. Raises ValueError, changing nothing, if it does not fit."""
        expected = self._state()
        missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
        if missing or unexpected:
            raise ValueError(f"memory state: missing {missing}, unexpected {unexpected}")
        rows = len(state["positives.ids"])
        for name, own in expected.items():
            shape = (rows, *own.shape[1:]) if name.startswith("positives.") else own.shape
            given = state[name]
            if given.shape != shape or given.dtype != own.dtype:
                raise ValueError(f"memory state: '{name}' is {given.dtype} {given.shape}, expected {own.dtype} {shape}")
        ids = state["positives.ids"]
        if rows > self.positives.capacity:
            raise ValueError(f"memory state: 'positives.ids' holds {rows}, the queue {self.positives.capacity}")
        if len(np.unique(self._checked(ids))) != rows or (state["clusters.assignment"] >= self._clusters).any():
            raise ValueError("memory state: an utterance twice in 'positives.ids', or a cluster that there is not")
        for name in ("filled", "speakers", "recordings", "rows"):
            getattr(self.references, name)[:] = state[f"references.{name}"]
        self.positives.replace(ids, state["positives.rows"])
        self._centroids = state["clusters.centroids"].copy()
        self._nearest = state["clusters.nearest"].copy()
        self._layout = Layout(state["clusters.assignment"].copy(), self._clusters)
        self.version = int(state["clusters.version"])
        if self._whiten:
            self._whitening = Whitening(state["whitening.mean"].copy(), state["whitening.map"].copy())
            self._whitened = self._whitening(self.references.rows) if self.version else None
        self._speakers = None
        self._counters = state["counters"].copy()

    def _by_speaker(self) -> Layout:
        known = self.references.speakers
        if self._speakers is None or not np.array_equal(self._speakers.assignment, known):
            self._speakers = Layout(known.astype(np.int32), int(known.max(initial=-1)) + 1)
        return self._speakers

    def _state(self) -> dict[str, np.ndarray]:
        ages = self.positives.by_age()
        return {
            **{f"references.{name}": array for name, array in vars(self.references).items()},
            "positives.ids": self.positives.ids[ages],
            "positives.rows": self.positives.rows[ages],
            "clusters.assignment": self._layout.assignment,
            "clusters.centroids": self._centroids,
            "clusters.nearest": self._nearest,
            **({"whitening.mean": self._whitening.mean, "whitening.map": self._whitening.map} if self._whiten else {}),
            "clusters.version": np.array(self.version, dtype=np.int64),
            "counters": self._counters,
        }

    def _finite(self, ids: np.ndarray, rows: np.ndarray, width: int, name: str) -> np.ndarray:
        """Which of ``rows [B, width]`` can be stored; one infinite row would spoil a whole clustering."""
        if rows.shape != (len(ids), width):
            raise ValueError(f"{name} have shape {rows.shape}, expected {(len(ids), width)}")
        finite: np.ndarray = np.isfinite(rows).all(axis=1)
        self._add(rejected=int((~finite).sum()))
        return finite

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        utterances = len(self.references.filled)
        if len(ids) and not 0 <= ids.min() <= ids.max() < utterances:
            raise ValueError(f"utterance ids must lie in 0..{utterances - 1}, got {ids.min()}..{ids.max()}")
        return ids

    def _count_recall(self, ids: np.ndarray, sample: Sample, found: np.ndarray) -> None:
        self._add(anchors=len(ids), found=int(found.sum()), pool=int(sample.pool.sum()))
        drawn = sample.ids >= 0
        for kind in ("speaker", "recording"):
            labels = getattr(self.references, f"{kind}s")
            mine, other = labels[ids[drawn]], labels[sample.ids[drawn]]
            known = (mine >= 0) & (other >= 0)
            self._add(**{f"{kind}_known": int(known.sum()), f"{kind}_same": int((known & (mine == other)).sum())})

    def _add(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counters[_COUNTERS.index(name)] += count

    def _clusters_used(self) -> float:
        present = self._layout.assignment[self.positives.ids[: self.positives.size]]
        return float(np.count_nonzero(np.bincount(present[present >= 0], minlength=self._clusters)) / self._clusters)

    def _nmi(self) -> dict[str, float]:
        result: dict[str, float] = {}
        for kind in ("speaker", "recording"):
            labels = getattr(self.references, f"{kind}s")
            known = (labels >= 0) & (self._layout.assignment >= 0)
            if known.any():
                result[f"nmi_{kind}"] = normalized_mutual_information(self._layout.assignment[known], labels[known])
        return result

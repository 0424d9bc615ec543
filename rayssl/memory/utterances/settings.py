"""The settings of a memory: its sizes, how it samples and how it clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rayssl.clustering.result import Mode

Sampling = Literal["cluster", "nn", "centroid", "speaker"]
_MOST_LABELS = 2**24  # whole numbers that float32 tells apart
UNCLUSTERED = ("nn", "speaker")
_DTYPES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Self-supervised positive sampling over ``utterances`` N, ids 0..N-1 (methods: SSPS; paper Eq. 3-6).

    ``queue`` |Q'| positives (at least 4 K for good coverage); ``clusters`` K; ``neighbours`` M: 0 samples from the own
    cluster, else from one of the M nearest others, with ``skip_empty`` one that has members in the queue;
    ``sampling``: "cluster", "nn" (one of the M nearest references in the queue; no clustering), "centroid" (the
    chosen cluster's centroid itself; needs reference_dim == positive_dim), or "speaker" (the true speaker's other
    recordings, by the labels: the bound that the others are compared with; no clustering). "label" samples nothing: the
    row of an anchor is the number of its cluster (positive_dim 1). ``whiten``: references are compared and clustered
    after a whitening fitted to them at each refresh. ``kmeans`` and ``device``: the mode and place of
    `rayssl.clustering.kmeans.cluster`; ``merged_from``: the smaller clusters that it merges into K (0: none);
    ``warm_start``: from the last centroids. ``overlapped``: see `rayssl.memory.utterances.refresh`. Rows are kept in
    ``reference_dtype`` and ``positive_dtype``, float16 or float32. Draws depend on (seed, epoch, id) alone: calling
    twice, or in parts, gives the same. Raises ValueError, naming the setting that cannot be.
    """

    utterances: int
    reference_dim: int
    positive_dim: int
    queue: int
    clusters: int
    neighbours: int = 0
    merged_from: int = 0
    sampling: Sampling | Literal["label"] = "cluster"
    iterations: int = 10
    kmeans: Mode = "fast"
    device: str = "cpu"
    seed: int = 0
    skip_empty: bool = False
    whiten: bool = False
    warm_start: bool = False
    overlapped: bool = False
    reference_dtype: str = "float16"
    positive_dtype: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("utterances", "queue", "clusters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("reference_dtype", "positive_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(f"{name} must be {' or '.join(_DTYPES)}, got {getattr(self, name)!r}")
        if self.sampling not in (*get_args(Sampling), "label"):
            raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))} or label, got {self.sampling!r}")
        least = 1 if self.sampling == "nn" else 0
        if self.neighbours < least:
            raise ValueError(f"neighbours must be at least {least} for sampling {self.sampling}, got {self.neighbours}")
        if self.clustered and not self.neighbours < self.clusters <= self.utterances:
            raise ValueError(
                f"neighbours < clusters <= utterances must hold, got {self.neighbours}, {self.clusters} and "
                f"{self.utterances}"
            )
        if self.clustered and self.merged_from and not self.clusters <= self.merged_from <= self.utterances:
            raise ValueError(
                f"merged_from must be 0 or in clusters..utterances, got {self.merged_from}, {self.clusters} and "
                f"{self.utterances}"
            )
        if self.sampling == "centroid" and self.reference_dim != self.positive_dim:
            raise ValueError(
                "sampling centroid needs reference_dim equal to positive_dim, got "
                f"{self.reference_dim} and {self.positive_dim}"
            )
        if self.sampling == "label" and (self.positive_dim, self.neighbours) != (1, 0):
            raise ValueError("sampling label needs positive_dim 1 and neighbours 0: a row is the number of a cluster")
        if self.sampling == "label" and self.clusters > _MOST_LABELS:
            raise ValueError(f"sampling label: at most {_MOST_LABELS} clusters have numbers that float32 tells apart")
        if self.whiten and self.sampling == "centroid":
            raise ValueError("whiten: centroids of whitened references are no positives; use another sampling")
        if self.warm_start and (self.whiten or self.merged_from or not self.clustered):
            raise ValueError("warm_start: the last centroids are no start where nothing, or other axes, are clustered")

    @property
    def clustered(self) -> bool:
        """Whether the references are clustered."""
        return self.sampling not in UNCLUSTERED

    @property
    def capacity(self) -> int:
        """How many positives the queue holds: not more than there are utterances."""
        return min(self.queue, self.utterances)

    @property
    def compares_whitened(self) -> bool:
        """Whether whitened rows are kept between refreshes, because each recall compares them."""
        return self.whiten and self.sampling == "nn"


def bytes_needed(settings: MemorySettings, shards: int) -> tuple[int, int]:
    """Bytes of the index, and of the largest of ``shards`` stores, at the most: while it clusters.

    Index: 13 N + 16 Q', and where utterances are laid out by cluster or speaker 24 N (half of it only while a new
    assignment is sorted) + K (4 D_repr + 4 M), overlapped twice that for K, and 4 N. Store, each figure divided by
    ``shards``: N (h D_repr + 1) + Q' (h D_emb + 4), h = 2 or 4 bytes; once more N h D_repr for the copy of an
    overlapped clustering, or for whitened rows. Blocks of rows and what k-means takes besides its points (about 20
    bytes for each, 40 K D_repr for the index, with ``merged_from`` in place of K if given, and up to 256 MB of answers)
    are not counted.
    """
    rows, queue = settings.utterances, settings.capacity
    index = 13 * rows + 16 * queue
    if settings.sampling != "nn":
        index += 24 * rows
    if settings.clustered:
        centroids = settings.clusters * (4 * settings.reference_dim + 4 * settings.neighbours)
        index += 2 * centroids + 4 * rows if settings.overlapped else centroids
    reference = settings.reference_dim * np.dtype(settings.reference_dtype).itemsize
    copies = 2 if settings.overlapped or settings.whiten else 1
    store = rows * (copies * reference + 1)
    store += queue * (settings.positive_dim * np.dtype(settings.positive_dtype).itemsize + 4)
    return index, -(-store // shards)

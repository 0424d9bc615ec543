"""Which rows of each shard belong to a stream: everything, or the labelled or unlabelled utterances of a split.

A `Selection` goes into data tasks. It holds counts per shard and where the split's file lies (3 bytes an utterance,
read once a process); which rows they are is looked up shard by shard, so that no list of ids exists anywhere.

Class-aware sampling: in an epoch of the labelled stream an utterance of class c comes ``floor(r_c + u)`` times, u drawn
for (seed, epoch, id) and ``r_c = (n_max / n_c) ** power`` with n_c labelled utterances of class c. With power 1 every
class is expected to have n_max rows; with 0 every utterance comes once. As r_c >= 1, no utterance is left out of an
epoch's order. How many rows a shard has is decided like the rows themselves, so that planning an epoch draws once for
every labelled utterance (half a second for a million of them in 2000 shards), and reading a shard for its own alone.

A shard is read whole for the rows that are selected in it: a stream of few utterances costs as many bytes from storage,
each time it starts over, as the shards they lie in.

Neither torch nor ray is imported here, see `rayssl.batches.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rayssl import storage
from rayssl.data import splits
from rayssl.data.shards import Manifest
from rayssl.data.splits import LABELLED, UNLABELLED, Split
from rayssl.errors import CorpusError
from rayssl.random import draws

Role = Literal["all", "labelled", "unlabelled"]
_MASKS = {"all": LABELLED | UNLABELLED, "labelled": LABELLED, "unlabelled": UNLABELLED}
_PURPOSES: dict[str, tuple[int, ...]] = {"all": (), "labelled": (1,), "unlabelled": (2,)}
_TIMES = 4  # a purpose beside those of `rayssl.batches.plan`


@dataclass(frozen=True)
class Selection:
    """A stream's rows: ``counts`` of each shard, whose first ids (and the corpus's end) are ``bounds``.

    ``place`` and ``sha256`` are those of the file of the split ``name``; without one, all rows of the corpus. ``rates``
    are r_c of each class, none without class-aware sampling; ``epoch_rows`` how many rows an epoch has, then on average
    (rounded down).
    """

    roles: Role
    bounds: tuple[int, ...]
    counts: tuple[int, ...]
    epoch_rows: int
    name: str = ""
    place: str = ""
    sha256: str = ""
    rates: tuple[float, ...] = ()

    @property
    def rows_total(self) -> int:
        """How many utterances are selected."""
        return sum(self.counts)

    @property
    def purpose(self) -> tuple[int, ...]:
        """What the stream's draws are made for besides seed and epoch: two streams of one run have orders of their own.

        Nothing for ``roles`` all, whose order is that of the corpus without a selection.
        """
        return _PURPOSES[self.roles]

    def describe(self) -> str:
        """The utterances in a few words, for messages."""
        which = "" if self.roles == "all" else f"{self.roles} "
        return f"split '{self.name}' has {self.rows_total} {which}utterances"

    def each_once(self) -> Selection:
        """The same utterances without class-aware sampling."""
        return replace(self, rates=(), epoch_rows=self.rows_total)

    def rows_of(self, shard: int) -> np.ndarray:
        """Positions int64 ``[counts[shard]]`` of the selected rows in ``shard`` (its index), ascending."""
        if not self.place:
            return np.arange(self.counts[shard])
        rows: np.ndarray = np.flatnonzero(self._columns(shard)[0] & _MASKS[self.roles])
        return rows

    def ids_and_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 ``[rows_total]`` and classes int64 of all selected utterances of a split; for sets that fit."""
        roles, classes = splits.columns(self.place, self.sha256)
        ids = np.flatnonzero(roles & _MASKS[self.roles])
        return ids, classes[ids].astype(np.int64)

    def epoch_counts(self, seed: int, epoch: int) -> Sequence[int]:
        """How many rows of each shard come in ``epoch``; for class-aware sampling other numbers in every epoch."""
        if not self.rates:
            return self.counts
        return [int(self.times(k, self.rows_of(k), seed, epoch).sum()) if n else 0 for k, n in enumerate(self.counts)]

    def times(self, shard: int, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """How often each of the ``rows [n]`` of ``shard`` comes in ``epoch``; int64 ``[n]``."""
        if not self.rates:
            return np.ones(len(rows), np.int64)
        rates = np.array(self.rates)[self._columns(shard)[1][rows]]
        keys = draws.keys_np(draws.fold(seed, _TIMES, epoch), self.bounds[shard] + rows)
        # floor(r + u), without the rounding of r + u
        whole = np.floor(rates)
        return np.asarray(whole + (draws.uniform_np(keys, _TIMES) >= 1.0 - (rates - whole)), np.int64)

    def labels_of(self, shard: int, rows: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What a method may know, and what is true, of ``rows [n]`` whose corpus labels are ``label [n]``; int32.

        Of a split these are its classes, the first one -1 where the utterance is not labelled, or the stream is the
        unlabelled one. Without a split both are ``label``.
        """
        if not self.place:
            return label, label
        roles, classes = self._columns(shard)
        truth = classes[rows].astype(np.int32)
        told = (roles[rows] & LABELLED > 0) & (self.roles != "unlabelled")
        return np.where(told, truth, np.int32(-1)), truth

    def _columns(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        roles, classes = splits.columns(self.place, self.sha256)
        part = slice(self.bounds[shard], self.bounds[shard + 1])
        return roles[part], classes[part]


def split_of(manifest: Manifest, uri: str, name: str) -> Split:
    """The split ``name`` of the corpus at ``uri``; `CorpusError` when it has none of that name."""
    if name not in manifest.splits:
        known = ", ".join(manifest.splits) or "none"
        raise CorpusError(f"{uri}: has no split '{name}' (splits: {known}); add it to splits and run rayssl prepare")
    return manifest.splits[name]


def selection(
    manifest: Manifest,
    uri: str,
    split: str | None = None,
    roles: Role = "all",
    *,
    class_aware: bool = False,
    power: float = 1.0,
) -> Selection:
    """The utterances of ``split`` of the corpus at ``uri`` that have one of ``roles``, or everything without a split.

    ``all`` are the labelled and unlabelled ones of the split, without those it leaves unused. ``class_aware`` is for
    the labelled. `CorpusError` when there is no such split, or its file is not the one of the manifest.
    """
    if split is None and roles != "all":
        raise ValueError(f"roles '{roles}' need a split")
    if class_aware and roles != "labelled":
        raise ValueError(f"class_aware is for the labelled utterances of a split, not for roles '{roles}'")
    if power < 0:
        raise ValueError(f"power is {power:g}, expected at least 0")
    bounds = (*(shard.first_id for shard in manifest.shards), manifest.rows)
    if split is None:
        return Selection(roles, bounds, tuple(shard.rows for shard in manifest.shards), manifest.rows)
    found = split_of(manifest, uri, split)
    place = storage.join(storage.absolute(uri), found.path)
    column, _ = splits.columns(place, found.sha256)
    if len(column) != manifest.rows:
        raise CorpusError(f"{place}: {len(column)} rows, the corpus has {manifest.rows}; run rayssl prepare --verify")
    mask = column & _MASKS[roles] > 0
    counts = tuple(int(count) for count in np.add.reduceat(mask.astype(np.int64), bounds[:-1]))
    rows, rates = sum(counts), tuple[float, ...]()
    if class_aware:
        numbers = [known.labelled for known in found.classes]
        rates = tuple((max(numbers) / number) ** power if number else 0.0 for number in numbers)
        rows = int(sum(number * rate for number, rate in zip(numbers, rates, strict=True)) + 1e-6)
    return Selection(roles, bounds, counts, rows, split, place, found.sha256, rates)

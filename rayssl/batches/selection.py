"""Which rows of each shard belong to a stream: all rows, or the labelled or unlabelled utterances of a split.

A `Selection` is sent to data tasks. It holds the number of selected rows in each shard, and the place of the split's
file. Each process reads that file once (3 bytes per utterance) and looks the rows up shard by shard, so that no list of
ids exists.

Class-aware sampling: in an epoch of the labelled stream an utterance of class c comes ``floor(r_c + u)`` times. Here u
in [0, 1) is drawn for (seed, epoch, id), and ``r_c = (n_max / n_c) ** power`` for n_c labelled utterances of class c.
With power 1 the expected number of rows is n_max for every class; with power 0 every utterance comes once. Because
r_c >= 1, every utterance is in the order of every epoch. Planning an epoch draws once for every labelled utterance, to
count the entries of each row group (half a second for a million utterances in 2000 shards). Reading a shard draws only
for the utterances in it.

A row group is read whole, even for one selected row. So a stream of few utterances reads most of the corpus in every
pass (`rayssl.batches.cache` avoids this for labelled streams).

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

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
MASKS = {"all": LABELLED | UNLABELLED, "labelled": LABELLED, "unlabelled": UNLABELLED}
_PURPOSES: dict[str, tuple[int, ...]] = {"all": (), "labelled": (1,), "unlabelled": (2,)}
_TIMES = 4  # a purpose, in addition to those of `rayssl.batches.plan`


@dataclass(frozen=True)
class Selection:
    """The rows of a stream.

    ``counts``: the number of selected rows in each shard. ``bounds``: the first id of each shard, and then the number
    of utterances in the corpus. ``name``, ``place`` and ``sha256`` describe the split and its file; they are empty if
    all rows of the corpus are selected. ``rates``: r_c of each class; empty without class-aware sampling.
    ``epoch_rows``: the number of rows in an epoch; with class-aware sampling the expected number, rounded down.
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
        """The number of selected utterances."""
        return sum(self.counts)

    @property
    def purpose(self) -> tuple[int, ...]:
        """A part of the key of the stream's draws, after seed and epoch, so that two streams of a run differ in order.

        It is empty for ``roles`` all. Then the order is the same as without a selection.
        """
        return _PURPOSES[self.roles]

    def describe(self) -> str:
        """The selected utterances in a few words, for messages."""
        which = "" if self.roles == "all" else f"{self.roles} "
        of = f"split '{self.name}'" if self.name else "the corpus"
        return f"{of} has {self.rows_total} {which}{self._rows_are()}"

    def _rows_are(self) -> str:
        return "utterances"

    def each_once(self) -> Selection:
        """The same utterances without class-aware sampling: each comes once."""
        return replace(self, rates=(), epoch_rows=self.rows_total)

    def rows_of(self, shard: int) -> np.ndarray:
        """Positions int64 ``[counts[shard]]`` of the selected rows in the shard with index ``shard``, ascending."""
        if not self.place:
            return np.arange(self.counts[shard])
        rows: np.ndarray = np.flatnonzero(self._columns(shard)[0] & MASKS[self.roles])
        return rows

    def ids_and_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and classes, int64 ``[rows_total]`` each, of all selected utterances of a split; for small selections."""
        roles, classes = splits.columns(self.place, self.sha256)
        ids = np.flatnonzero(roles & MASKS[self.roles])
        return ids, classes[ids].astype(np.int64)

    def entries(self, shard: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The entries of ``shard`` in ``epoch``: each selected row as often as it comes, in the order of the file.

        Returns int64 ``[n]`` each: the rows, which turn of its row an entry is (from 0), and the number of the row's
        turns.
        """
        once = self.rows_of(shard)
        times = self.times(shard, once, seed, epoch)
        rows = np.repeat(once, times)
        turns = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        return rows, turns, np.repeat(times, times)

    def times(self, shard: int, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """How often each of the ``rows [n]`` of ``shard`` comes in ``epoch``, int64 ``[n]``."""
        if not self.rates:
            return np.ones(len(rows), np.int64)
        rates = np.array(self.rates)[self._columns(shard)[1][rows]]
        keys = draws.keys_np(draws.fold(seed, _TIMES, epoch), self.bounds[shard] + rows)
        # floor(r + u), computed without the rounding error of r + u
        whole = np.floor(rates)
        return np.asarray(whole + (draws.uniform_np(keys, _TIMES) >= 1.0 - (rates - whole)), np.int64)

    def labels_of(self, shard: int, rows: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The labels that a method may learn from, and the true labels, of ``rows [n]`` of ``shard``; int32 ``[n]``.

        With a split both are its classes. The first result is -1 if the utterance is not labelled, or if this is the
        unlabelled stream. Without a split both results are ``label [n]``, the labels of the corpus.
        """
        if not self.place:
            return label, label
        roles, classes = self._columns(shard)
        truth = classes[rows].astype(np.int32)
        visible = (roles[rows] & LABELLED > 0) & (self.roles != "unlabelled")
        return np.where(visible, truth, np.int32(-1)), truth

    def _columns(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        roles, classes = splits.columns(self.place, self.sha256)
        part = slice(self.bounds[shard], self.bounds[shard + 1])
        return roles[part], classes[part]


def split_of(manifest: Manifest, uri: str, name: str) -> Split:
    """The split ``name`` of the corpus at ``uri``; raises `CorpusError` if there is no such split."""
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
    """Selects utterances of the corpus at ``uri``.

    Args:
        manifest: that of the corpus.
        uri: the corpus.
        split: the name of a split; None selects all utterances of the corpus.
        roles: which utterances of the split. ``all`` are the labelled and the unlabelled ones, but not the unused ones.
        class_aware: samples the labelled utterances so that rare classes come more often (see this file's docstring).
        power: how much more often: 0 not at all, 1 until all classes have the same expected number of rows.

    Raises:
        CorpusError: there is no such split, or its file is not the one that the manifest lists.
        ValueError: the arguments contradict each other.
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
    mask = column & MASKS[roles] > 0
    counts = tuple(int(count) for count in np.add.reduceat(mask.astype(np.int64), bounds[:-1]))
    rows, rates = sum(counts), tuple[float, ...]()
    if class_aware:
        numbers = [known.labelled for known in found.classes]
        rates = tuple((max(numbers) / number) ** power if number else 0.0 for number in numbers)
        rows = int(sum(number * rate for number, rate in zip(numbers, rates, strict=True)) + 1e-6)
    return Selection(roles, bounds, counts, rows, split, place, found.sha256, rates)

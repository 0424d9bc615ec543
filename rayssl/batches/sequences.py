"""Sequences of consecutive epochs of sleep: what a stream of a corpus of nights gives instead of utterances.

A sequence has ``length`` N rows, and is named by its first one. A run of L > N epochs (`rayssl.data.nights.runs`) gives
k = L // N + 1 sequences in every pass: they begin at j N - s for j = 0..k-1, clipped into the run, where s in
[0, k N - L] is drawn for (seed, epoch, run); in [1, N - 1] if N divides L, so that no sequence comes twice. So every
epoch of sleep is in a pass at least once. The first and the last sequence of a run are the same in every pass, which
that needs; those between begin elsewhere. A shorter run gives one sequence: its last epoch is repeated to the end. With
N = 1 each epoch comes once.

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayssl import storage
from rayssl.batches.selection import MASKS, Role, Selection, split_of
from rayssl.data import splits
from rayssl.data.nights import runs
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError
from rayssl.random import draws

_OFFSET = 6  # a purpose, in addition to those of `rayssl.batches.plan`


@dataclass(frozen=True, kw_only=True)
class Sequences(Selection):
    """The sequences of a corpus of nights, or of the nights of a split that have a role.

    ``counts`` and ``epoch_rows`` count sequences. ``length``: N. ``runs_place`` and ``runs_sha256``: the file of runs.
    """

    length: int
    runs_place: str
    runs_sha256: str

    def _rows_are(self) -> str:
        return f"sequences of {self.length} epochs of sleep"

    def each_once(self) -> Sequences:
        """The same sequences: each comes once in any case."""
        return self

    def rows_of(self, shard: int) -> np.ndarray:
        """Positions int64 of the rows in the shard with index ``shard`` that any sequence may contain, ascending."""
        begin, size = self._of(shard)
        inside = [np.arange(first, first + count) for first, count in zip(begin.tolist(), size.tolist(), strict=True)]
        return np.concatenate(inside) if inside else np.zeros(0, np.int64)

    def entries(self, shard: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first row of each sequence of ``shard`` in ``epoch``, ascending; turns (0) and their number (1)."""
        begin, size = self._of(shard)
        count = sequence_counts(size, self.length)
        run = np.repeat(np.arange(len(begin)), count)
        nth = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
        keys = draws.keys_np(draws.fold(seed, _OFFSET, epoch, *self.purpose), self.bounds[shard] + begin)
        spare = count * self.length - size
        least = (size > self.length) & (spare == self.length)  # N divides L: s of 0 or N would give a sequence twice
        moved = least + np.floor(draws.uniform_np(keys, _OFFSET) * (spare + 1 - 2 * least)).astype(np.int64)
        room = np.maximum(size - self.length, 0)
        rows = begin[run] + np.clip(nth * self.length - moved[run], 0, room[run])
        return rows, np.zeros_like(rows), np.ones_like(rows)

    def expanded(self, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The rows ``[n, N]`` of the sequences that begin at ``row [n]`` of ``shard [n]``, see the file's docstring."""
        last = np.empty_like(row)
        for number in np.unique(shard).tolist():
            begin, size = self._of(number)
            inside = shard == number
            run = np.searchsorted(begin, row[inside], side="right") - 1
            last[inside] = (begin + size - 1)[run]
        return np.asarray(np.minimum(row[:, None] + np.arange(self.length), last[:, None]))

    def _of(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs of ``shard`` that have the role: their first rows in it, and their lengths."""
        found = runs.read(self.runs_place, self.runs_sha256)
        at = slice(*np.searchsorted(found.first, self.bounds[shard : shard + 2]))
        begin, size = found.first[at] - self.bounds[shard], found.epochs[at]
        if not self.place:
            return begin, size
        roles, _ = self._columns(shard)
        has = roles[begin] & MASKS[self.roles] > 0
        return begin[has], size[has]


def sequence_counts(epochs: np.ndarray, length: int) -> np.ndarray:
    """The number of sequences of ``length`` that runs of ``epochs [n]`` give in a pass."""
    return np.asarray(np.where(epochs <= length, 1, epochs // length + (length > 1)))


def sequences(manifest: Manifest, uri: str, split: str | None, roles: Role, length: int) -> Sequences:
    """The sequences of ``length`` epochs of the corpus at ``uri``.

    Args:
        manifest: that of the corpus.
        uri: the corpus.
        split: the name of a split by nights; None for all nights.
        roles: which nights of the split.
        length: N.

    Raises:
        CorpusError: the corpus is not one of nights, there is no such split, or a file is not the one that the
            manifest lists.
    """
    if manifest.nights is None:
        raise CorpusError(f"{uri}: has no nights; prepare it from a source of nights")
    bounds = (*(shard.first_id for shard in manifest.shards), manifest.rows)
    place = storage.join(storage.absolute(uri), manifest.nights.path)
    made = Sequences(roles, bounds, (), 0, length=length, runs_place=place, runs_sha256=manifest.nights.sha256)
    if split is not None:
        found = split_of(manifest, uri, split)
        file = storage.join(storage.absolute(uri), found.path)
        roles_of, _ = splits.columns(file, found.sha256)
        if len(roles_of) != manifest.rows:
            raise CorpusError(f"{file}: {len(roles_of)} rows, the corpus has {manifest.rows}; run rayssl prepare")
        made = replace(made, name=split, place=file, sha256=found.sha256)
    counts = _counts(made, len(manifest.shards))
    return replace(made, counts=tuple(counts), epoch_rows=sum(counts))


def _counts(made: Sequences, shards: int) -> Sequence[int]:
    return [int(sequence_counts(made._of(shard)[1], made.length).sum()) for shard in range(shards)]

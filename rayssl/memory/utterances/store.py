"""The rows of a memory, or a share of them: references by utterance, positives by slot.

`rayssl.memory.utterances.index.Index` decides which utterances are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

import numpy as np

from rayssl.clustering.kmeans import partition_on
from rayssl.clustering.partition import Partition, call
from rayssl.clustering.points import unit_rows
from rayssl.clustering.whitening import Moments, Whitening
from rayssl.memory.pieces import Kind, Piece, Read, cuts, pieces_of
from rayssl.memory.snapshots import RowSnapshot
from rayssl.memory.utterances.positives import Nearest, merge_nearest, nearest_rows
from rayssl.memory.utterances.settings import MemorySettings

if TYPE_CHECKING:
    from rayssl.clustering.gpu.rows import DeviceRows

P = ParamSpec("P")
T = TypeVar("T")
_KINDS: tuple[Kind, ...] = ("references", "positives")
# attributes of _Rows that make up a piece, and what the second of them is called in it
_NAMES: dict[Kind, tuple[str, str]] = {"references": ("references", "filled"), "positives": ("positives", "owners")}
_MARKS: dict[Kind, str] = {"references": "filled", "positives": "ids"}
BLOCK_BYTES = 64 << 20  # of a snapshot's piece, at most: a few of them are in RAM a second time while they are written


@dataclass(frozen=True)
class Message:
    """What one rank sends to one store in one call: rows to keep, slots to read, references to return.

    ``reference_ids [R]`` and ``references [R, Dr]``; ``slots [P]`` with ``positive_ids [P]`` and ``positives [P, De]``;
    ``read [Q]``, slots, with ``expected [Q]``, the utterances that should be found there; ``queries [A]``, utterances.
    Ids and slots int64.
    """

    reference_ids: np.ndarray
    references: np.ndarray
    slots: np.ndarray
    positive_ids: np.ndarray
    positives: np.ndarray
    read: np.ndarray
    expected: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True)
class Answer:
    """To a `Message`: ``rows [Q, De]`` as they are kept, ``right [Q]`` where the expected utterance's was there, and
    ``queries [A, Dr]`` float32, the references as they are compared.
    """

    rows: np.ndarray
    right: np.ndarray
    queries: np.ndarray


@dataclass
class _Rows:
    """The arrays of a store; ``first`` is what its first row is called."""

    references: np.ndarray  # [n, Dr] of norm 1
    filled: np.ndarray  # [n] bool
    positives: np.ndarray  # [q, De]
    owners: np.ndarray  # [q] int32, the utterance whose row is in a slot; -1: none
    whitened: np.ndarray | None = None  # the references as they are compared, kept up with them


class Store:
    """Share ``shard`` of ``shards`` of the rows: a run of pieces of references, and one of the queue's slots.

    Ids and slots are those of the whole memory; all ids and slots of a call must lie in the share.
    """

    def __init__(self, settings: MemorySettings, shard: int = 0, shards: int = 1) -> None:
        self.settings = settings
        utterances, slots = cuts(settings.utterances), cuts(settings.capacity)
        self._pieces: dict[Kind, range] = {
            "references": pieces_of(utterances, shard, shards),
            "positives": pieces_of(slots, shard, shards),
        }
        self._bounds: dict[Kind, np.ndarray] = {"references": utterances, "positives": slots}
        self.first, self.end = self._range("references")
        self.first_slot, self.end_slot = self._range("positives")
        self._rows = self._empty()
        self._staged: _Rows | None = None
        self._partition: Partition | None = None
        self._whitening: Whitening | None = None
        self._on_device: DeviceRows | None = None  # a copy of the compared rows on a GPU, from the first search on
        self._snapshots: dict[Kind, RowSnapshot] = {}  # until they are read to the end

    # ---- rows

    def write_references(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Stores ``rows [B, Dr]`` (normalised here) for ``ids [B]``; of equal ids the last row stays."""
        own, kept = ids - self.first, self._rows
        self._before_write("references", own)
        kept.references[own] = unit_rows(rows)
        kept.filled[own] = True
        if kept.whitened is not None and self._whitening is not None:
            kept.whitened[own] = self._whitening(kept.references[own])
        if self._on_device is not None:
            self._on_device.write(own, self._compared()[own])

    def write_positives(self, slots: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
        """Stores ``rows [B, De]`` of the utterances ``ids [B]`` in ``slots [B]``."""
        own = slots - self.first_slot
        self._before_write("positives", own)
        self._rows.positives[own] = rows
        self._rows.owners[own] = ids

    def read(self, slots: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows in ``slots [B]``, as they are kept, and whether each is of the utterance in ``ids [B]``."""
        own = slots - self.first_slot
        return self._rows.positives[own], self._rows.owners[own] == ids

    def write(self, what: Message) -> None:
        """Keeps the rows of ``what``."""
        if len(what.reference_ids):
            self.write_references(what.reference_ids, what.references)
        if len(what.slots):
            self.write_positives(what.slots, what.positive_ids, what.positives)

    def answer(self, what: Message) -> Answer:
        """Answers ``what`` by what has been written until now."""
        return Answer(*self.read(what.read, what.expected), self.queries(what.queries))

    # ---- nearest neighbours

    def queries(self, ids: np.ndarray) -> np.ndarray:
        """The references of ``ids [B]`` as they are compared, float32 ``[B, Dr]``."""
        rows: np.ndarray = self._compared()[ids - self.first].astype(np.float32)
        return rows

    def nearest(self, queries: np.ndarray, pool: np.ndarray) -> Nearest:
        """The M + 1 references of this store most similar to each of ``queries [B, Dr]``.

        ``pool``: bits, as `np.packbits` makes them, of the utterances of the whole memory that may be found.
        """
        present = np.unpackbits(pool[self.first // 8 : -(-self.end // 8)]).astype(bool)
        present = present[self.first % 8 :][: self.end - self.first] & self._rows.filled
        rows, count, found = self._compared(), self.settings.neighbours + 1, []
        if self.settings.device != "cpu":
            answers = self._rows_on_device().nearest(queries, present, list(self._own("references")), count)
            found = [Nearest(self.first + places, similarity) for places, similarity in answers]
            return merge_nearest(found, len(queries), count)
        for own in self._own("references"):
            # piece by piece for any number of stores: the product of another shape may differ in its last bits
            places = own.start + np.flatnonzero(present[own])
            if len(places):
                found.append(nearest_rows(queries, rows[places], self.first + places, count))
        return merge_nearest(found, len(queries), count)

    def _rows_on_device(self) -> DeviceRows:
        if self._on_device is None:
            from rayssl.clustering.gpu.rows import DeviceRows  # here alone: a memory starts without torch

            self._on_device = DeviceRows(self._compared(), self.settings.device)
        return self._on_device

    def _compared(self) -> np.ndarray:
        return self._rows.references if self._rows.whitened is None else self._rows.whitened

    # ---- clustering

    def moments(self) -> list[Moments]:
        """Of the references in each piece of this store."""
        rows = self._rows
        device = self.settings.device
        return [Moments.of(rows.references[own][rows.filled[own]], device) for own in self._own("references")]

    def whiten(self, whitening: Whitening) -> None:
        """From now on references are compared by this map."""
        self._whitening, rows = whitening, self._rows
        if rows.whitened is None:
            rows.whitened = np.zeros_like(rows.references)
        self._whiten_into(rows.whitened, whitening)
        self._on_device = None

    def begin(self, whitening: Whitening | None, *, copy: bool) -> np.ndarray:
        """Prepares a clustering of the references there are; which utterances have one, bool ``[n]``.

        ``whitening``: of the whitened references. ``copy``: later writes do not change what is clustered. A copy, and
        whitened rows too, take as many bytes as the references; on a GPU these are the GPU's.
        """
        points, filled = self._rows.references, self._rows.filled.copy()
        there = self.settings.device != "cpu"  # the points are sent there, which is a copy
        if whitening is not None and not there:
            points = np.empty_like(points)
            self._whiten_into(points, whitening)
        elif copy and not there:
            points = points.copy()
        if not filled.all():
            points = _Chosen.of(points, np.flatnonzero(filled))
        self._partition = partition_on(
            self.settings.device, points, threads=self.settings.threads, whitening=whitening if there else None
        )
        return filled

    def on_partition(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Calls ``method`` on the references as a part of a k-means; from `begin` to `finish`."""
        assert self._partition is not None
        return call(self._partition, method, *arguments, **options)

    def finish(self) -> None:
        """Forgets what `begin` made."""
        self._partition = None

    def _whiten_into(self, out: np.ndarray, whitening: Whitening) -> None:
        for own in self._own("references"):  # the blocks are those of the pieces, for any number of stores
            whitening.into(out[own], self._rows.references[own], self.settings.device)

    # ---- state

    def snapshot(self) -> Iterator[Piece]:
        """All rows as they are now, a piece at a time. They may be read in another thread while rows are written.

        A piece is a copy of at most `BLOCK_BYTES`. There is one snapshot at a time: a new one ends the one before.
        """
        self._snapshots = {kind: RowSnapshot(rows) for kind, rows in self.rows().items()}
        marks = {kind: getattr(self._rows, _NAMES[kind][1]).copy() for kind in _KINDS}
        return self._pieces_of(self._snapshots, marks)

    def _pieces_of(self, snapshots: dict[Kind, RowSnapshot], marks: dict[Kind, np.ndarray]) -> Iterator[Piece]:
        for kind in _KINDS:
            rows, marked, first = self.rows()[kind], marks[kind], self._range(kind)[0]
            most = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
            for own in self._own(kind):
                for start in range(own.start, own.stop, most):
                    stop = min(start + most, own.stop)
                    mark = marked[start:stop]
                    written = np.flatnonzero(mark if kind == "references" else mark >= 0)
                    used = int(written[-1]) + 1 if len(written) else 0
                    block = snapshots[kind].take(start, stop)[:used]
                    yield Piece(
                        kind, first + start, first + start, first + stop, {"rows": block, _MARKS[kind]: mark[:used]}
                    )
        if self._snapshots is snapshots:
            self._snapshots = {}

    def _before_write(self, kind: Kind, own: np.ndarray) -> None:
        snapshot = self._snapshots.get(kind)
        if snapshot is not None:
            snapshot.before_write(own)

    def restore(self, read: Read) -> None:
        """Reads this share of the pieces that ``read`` finds; in use after `commit`.

        Raises ValueError where they do not fit. Until `commit` both the old and the new rows are held.
        """
        self._staged = None
        staged = self._empty()
        for kind in _KINDS:
            first, end = self._range(kind)
            for piece in read(kind, first, end):
                for name, saved in zip(_NAMES[kind], ("rows", _MARKS[kind]), strict=True):
                    _take(getattr(staged, name), first, piece, saved)
        self._staged = staged

    def commit(self, whitening: Whitening | None) -> None:
        """Brings what `restore` has read into use; references are compared by ``whitening``, if any."""
        assert self._staged is not None
        self._rows, self._staged, self._whitening, self._on_device = self._staged, None, None, None
        self._snapshots = {}
        if whitening is not None:
            self.whiten(whitening)

    def rows(self) -> dict[Kind, np.ndarray]:
        """All rows of each kind, ``[n, D]``."""
        return {"references": self._rows.references, "positives": self._rows.positives}

    def _empty(self) -> _Rows:
        settings = self.settings
        rows, slots = self.end - self.first, self.end_slot - self.first_slot
        return _Rows(
            np.zeros((rows, settings.reference_dim), settings.reference_dtype),
            np.zeros(rows, dtype=bool),
            np.zeros((slots, settings.positive_dim), settings.positive_dtype),
            np.full(slots, -1, dtype=np.int32),
        )

    def _range(self, kind: Kind) -> tuple[int, int]:
        """First and end of what this store has of a kind."""
        bounds, own = self._bounds[kind], self._pieces[kind]
        return int(bounds[own.start]), int(bounds[own.stop])

    def _own(self, kind: Kind) -> Iterator[slice]:
        """Where each piece of a kind is among the rows of this store."""
        bounds, own = self._bounds[kind], self._pieces[kind]
        first = int(bounds[own.start])
        for number in own:
            yield slice(int(bounds[number]) - first, int(bounds[number + 1]) - first)


class _Chosen:
    """``rows[places]``, taken a block at a time: it saves a copy of nearly all rows where only a few are missing."""

    def __init__(self, rows: np.ndarray, places: np.ndarray) -> None:
        self._rows, self._places = rows, places
        self.shape, self.dtype = (len(places), *rows.shape[1:]), rows.dtype

    @classmethod
    def of(cls, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Typed as an array for `Partition`, which uses no more of its points than this class has."""
        return cast(np.ndarray, cls(rows, places))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        found: np.ndarray = self._rows[self._places[key]]
        return found


def _take(own: np.ndarray, first: int, piece: Piece, name: str) -> None:
    """Copies into ``own``, whose first row is called ``first``, what ``piece`` has of it; ValueError if it is other."""
    given, length = piece.arrays[name], piece.end - piece.first
    if given.shape[1:] != own.shape[1:] or given.dtype != own.dtype or len(given) > length:
        raise ValueError(
            f"memory state: '{piece.kind}.{name}' is {given.dtype} {given.shape}, "
            f"expected {own.dtype} {(length, *own.shape[1:])}"
        )
    begin, end = max(first, piece.first), min(first + len(own), piece.first + len(given))
    if begin < end:
        own[begin - first : end - first] = given[begin - piece.first : end - piece.first]

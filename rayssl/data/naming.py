"""The distinct names of a corpus, sorted, so that each has an index: in bounded memory, however many there are.

Each run of a listing (see `rayssl.data.sorting`) has its own sorted names, and its rows have codes: positions among
these. `merge` merges the names of all runs, one range of names after the other, and says which index each code has.
"""

from __future__ import annotations

import io
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.data import shards
from rayssl.data.columns import Pieces
from rayssl.data.shards import LABELS_SCHEMA

PIECE = 1 << 13  # names that lie together in a file of names
_RANGE = 64  # pieces that are merged at a time
_ROW_GROUP = 1 << 18  # rows of the file of names


class RepeatedName(Exception):
    """A name that must be unique was found twice."""


class Names:
    """Names in the order of their indices, in memory or in files."""

    def __init__(self, parts: Sequence[Pieces]) -> None:
        self._parts = parts
        self.count = sum(int(part.rows.sum()) for part in parts)

    def arrays(self) -> Iterator[pa.StringArray]:
        """The names, some at a time."""
        for part in self._parts:
            for piece, rows in enumerate(part.rows):
                if rows:
                    yield part.read(piece, piece + 1).column(0)

    def texts(self) -> list[str]:
        """All names. Ask only for kinds that have few of them."""
        return [name for names in self.arrays() for name in names.to_pylist()]


def listed(names: Sequence[str]) -> Names:
    """The ``names`` in their order, in memory."""
    return Names([Pieces(pa.record_batch([pa.array(names)], ["name"]), np.array([0, len(names)]), None)])


class RunNames(NamedTuple):
    """The sorted names of one run in pieces, and the first name of each piece."""

    pieces: Pieces
    firsts: list[str]


def run_names(names: pa.StringArray, place: str | None) -> RunNames:
    """The names of a run, which are sorted; with ``place`` they are written to this file."""
    bounds = np.append(np.arange(0, len(names), PIECE), len(names))
    firsts: list[str] = names.take(pa.array(bounds[:-1])).to_pylist()
    return RunNames(Pieces(pa.record_batch([names], ["name"]), bounds, place), firsts)


def coded(column: pa.StringArray, unique: bool = False) -> tuple[np.ndarray, pa.StringArray]:
    """Codes int32 ``[B]`` of the names in ``column``, -1 for null, and the names sorted: the code is the position.

    Raises `RepeatedName` if the names must be ``unique`` and are not.
    """
    encoded = column.dictionary_encode()
    names = encoded.dictionary
    if unique and len(names) < len(column):
        found = pc.value_counts(column)
        raise RepeatedName(pc.min(found.field("values").filter(pc.greater(found.field("counts"), 1))).as_py())
    order = pc.array_sort_indices(names)
    rank = np.full(len(names) + 1, -1, np.int32)  # the last entry is for null
    rank[order.to_numpy()] = np.arange(len(names), dtype=np.int32)
    return rank[encoded.indices.fill_null(len(names)).to_numpy()], names.take(order)


def merge(runs: Sequence[RunNames], place: str | None, unique: bool = False) -> tuple[Names, list[np.ndarray]]:
    """The names of all runs, and for each run the index of each of its codes, int32; one more entry, -1, for null.

    Args:
        runs: the names of each run.
        place: the beginning of the names of files to write; None keeps the names in memory.
        unique: whether no name may be in two runs.

    Raises:
        RepeatedName: a name is in two runs and must be ``unique``.
    """
    none = np.full(1, -1, np.int32)
    if len(runs) == 1:
        names = Names([runs[0].pieces])
        return names, [np.append(np.arange(names.count, dtype=np.int32), none)]
    firsts = sorted(first for run in runs for first in run.firsts)
    cuts: list[str | None] = [*firsts[::_RANGE], None]
    indices: list[list[np.ndarray]] = [[] for _ in runs]
    parts: list[Pieces] = []
    count = 0
    for number, (low, high) in enumerate(itertools.pairwise(cuts)):
        held = [_between(run, str(low), high) for run in runs]
        codes, both = coded(pa.concat_arrays(held), unique)
        for index, start, size in zip(indices, np.cumsum([0, *map(len, held)]), map(len, held), strict=False):
            index.append(codes[start : start + size] + np.int32(count))
        count += len(both)
        bounds = np.append(np.arange(0, len(both), PIECE * _RANGE), len(both))
        at = None if place is None else f"{place}{number:05d}"
        parts.append(Pieces(pa.record_batch([both], ["name"]), bounds, at))
    return Names(parts), [np.concatenate([*index, none]) for index in indices]


def write(uri: str, names: Mapping[str, Names]) -> None:
    """Writes the names of each kind for the corpus at ``uri``, as `rayssl.data.shards.write_labels` does."""
    buffer, held = io.BytesIO(), LABELS_SCHEMA.empty_table()
    with pq.ParquetWriter(buffer, LABELS_SCHEMA, compression="zstd") as writer:
        for rows in _label_rows(names):
            held = pa.concat_tables([held, rows])
            while len(held) >= _ROW_GROUP:  # the file does not depend on how the names come
                writer.write_table(held.slice(0, _ROW_GROUP).combine_chunks())
                held = held.slice(_ROW_GROUP)
        writer.write_table(held.combine_chunks())
    storage.write_bytes(storage.join(uri, shards.LABELS), buffer.getvalue())


def _label_rows(names: Mapping[str, Names]) -> Iterator[pa.Table]:
    for kind in shards.KINDS:
        first = 0
        for column in names[kind].arrays():
            index = np.arange(first, first + len(column), dtype=np.int32)
            filled = pa.array([kind]).take(pa.array(np.zeros(len(column), np.int32)))
            yield pa.table([filled, pa.array(index), column], schema=LABELS_SCHEMA)
            first += len(column)


def _between(run: RunNames, low: str, high: str | None) -> pa.StringArray:
    """The names of ``run`` from ``low`` on and before ``high``."""
    first = max(0, bisect_right(run.firsts, low) - 1)
    last = len(run.firsts) if high is None else bisect_left(run.firsts, high)
    names = run.pieces.read(first, max(first, last)).column(0)
    before = pc.sum(pc.less(names, low)).as_py() or 0
    after = 0 if high is None else pc.sum(pc.greater_equal(names, high)).as_py() or 0
    return names.slice(before, max(0, len(names) - before - after))

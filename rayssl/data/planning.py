"""Cuts the sorted rows of a listing into units of work, in bounded memory.

Each unit is a range of the rows in the order of their keys. Its rows are packed as bytes. They stay in memory if the
whole listing does; otherwise the rows of many units are written to one file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayssl import storage
from rayssl.data import columns
from rayssl.data.columns import Pieces
from rayssl.data.naming import RepeatedName
from rayssl.data.sorting import Sorted
from rayssl.data.units import PrepareUnit

_STEP_BYTES = 32 << 20  # of rows that are read at a time


class Cut(NamedTuple):
    """How rows are cut: into units of about ``target`` rows, and no group is divided if rows are ``joined`` in groups.

    ``head``: everything else that the units depend on, as plain values; their digests cover it.
    """

    target: int
    joined: bool
    head: list[Any]


def cut(rows: Sorted, how: Cut, folder: str | None, tell: Callable[[int], None]) -> list[PrepareUnit]:
    """The units in order. With ``folder`` their rows are written to files below it.

    Raises `RepeatedName` if two rows have the same key, name and condition. ``tell`` is called with the number of rows
    that were read.
    """
    head = json.dumps(how.head, sort_keys=True)
    made: list[PrepareUnit] = []
    for number, (batch, bounds) in enumerate(_whole_units(rows, how, tell)):
        first = len(made)
        begun = (f"{head}\n{first + k}\n".encode() for k in range(len(bounds) - 1))
        digests = columns.digests(batch, bounds, begun)
        place = "" if folder is None else f"units-{number:05d}"
        pieces = Pieces(batch, bounds, None if folder is None else storage.join(folder, place))
        for k, digest in enumerate(digests):
            start, size = (0, 0) if folder is None else pieces.span(k)
            data = columns.packed(pieces.read(k, k + 1)) if folder is None else b""
            made.append(PrepareUnit(first + k, digest, int(pieces.rows[k]), place, start, size, data))
    return made


def _whole_units(rows: Sorted, how: Cut, tell: Callable[[int], None]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The sorted rows of some units at a time, and where each unit begins."""
    total = int(rows.rows.sum())
    count = max(1, round(total / how.target))
    left, left_units, done = None, np.zeros(0, np.int64), 0
    for first, last in _steps(rows.rows, _STEP_BYTES * total // rows.bytes):
        batch = rows.read(first, last)
        batch, begins = _ordered(batch, how.joined)
        sizes = np.diff(np.append(np.flatnonzero(begins), len(batch)))
        before = done + np.flatnonzero(begins)
        units = np.repeat(np.minimum(count - 1, before * count // total), sizes)
        done += len(batch)
        tell(done)
        batch = batch.drop_columns(["key"])
        if left is not None and len(left):
            batch, units = pa.concat_batches([left, batch]), np.concatenate([left_units, units])
        bounds = np.append(0, np.flatnonzero(np.diff(units)) + 1)
        if done == total:
            yield batch, np.append(bounds, len(batch))
        else:
            left, left_units = batch.slice(int(bounds[-1])), units[bounds[-1] :]
            if len(bounds) > 1:
                yield batch.slice(0, int(bounds[-1])), bounds


def _steps(rows: np.ndarray, step: int) -> Iterator[tuple[int, int]]:
    """Ranges of pieces that have about ``step`` rows together, or one piece; ranges without rows are left out."""
    first, held = 0, 0
    for piece, count in enumerate(rows.tolist()):
        if held and held + count > step:
            yield first, piece
            first, held = piece, 0
        held += count
    if held:
        yield first, len(rows)


def _ordered(batch: pa.RecordBatch, joined: bool) -> tuple[pa.RecordBatch, np.ndarray]:
    """The rows in order, and whether each begins a group, bool ``[B]``.

    Groups are ordered by key, and the rows of a group by name. Raises `RepeatedName`.
    """
    keys = batch.column("key").to_numpy()
    recordings = batch.column("recording_index").to_numpy()
    order = np.argsort(keys)
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(same):  # members of one group, a repeated name, or two texts with the same hash
        names = np.empty(len(batch), np.int64)
        names[pc.array_sort_indices(batch.column("name")).to_numpy()] = np.arange(len(batch))
        order = np.lexsort((batch.column("condition").to_numpy(), names, *([recordings] if joined else []), keys))
    batch, keys, recordings = batch.take(pa.array(order)), keys[order], recordings[order]
    if joined:
        begins = np.append(True, (np.diff(keys) != 0) | (np.diff(recordings) != 0))
    else:
        begins = np.ones(len(batch), bool)
        again = np.flatnonzero(np.diff(keys) == 0)
        first, second = (batch.select(["name", "condition"]).take(pa.array(again + k)).to_pylist() for k in (0, 1))
        repeated = [one["name"] for one, other in zip(first, second, strict=True) if one == other]
        if repeated:
            raise RepeatedName(min(repeated))
    return batch, begins

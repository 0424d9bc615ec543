"""Sorts the rows of a listing by their keys in bounded memory.

Rows are collected until they fill a run. A run is sorted and written to a file, in pieces by the first bits of the key.
Afterwards, the rows of all runs whose keys begin with the same bits are read together. A listing that fits into one run
stays in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayssl import storage
from rayssl.data import naming
from rayssl.data.columns import Pieces
from rayssl.data.listing import rendered
from rayssl.data.naming import Names, RunNames

_BITS = 9  # the rows of a run lie in 2**_BITS pieces
_RUN_BYTES = 64 << 20
#: The kinds of names and the column of `rayssl.data.listing.ROWS` where they are.
NAMED = {"speaker": "speaker", "recording": "recording_name", "label": "label"}


class Sorted:
    """Rows that can be read in the order of their keys.

    ``rows [P]`` counts the rows of each piece, ``bytes`` is the size of all rows. ``names``: those of each of
    `NAMED`, in the order of their indices.
    """

    def __init__(self, pieces: Sequence[Pieces], names: dict[str, Names], indices: dict[str, list[np.ndarray]]) -> None:
        self.rows = np.sum([run.rows for run in pieces], axis=0)
        self.bytes = sum(run.bytes for run in pieces)
        self.names = names
        self._pieces, self._indices = pieces, indices

    def read(self, first: int, last: int) -> pa.RecordBatch:
        """The rows of the pieces ``first`` to ``last - 1``, with an index (-1: unknown) in a column of each kind.

        The rows of a piece stand in any order. Every row of a later piece has a larger key.
        """
        found = []
        for number, run in enumerate(self._pieces):
            batch = run.read(first, last)
            for kind, index in self._indices.items():
                at = batch.schema.get_field_index(f"{kind}_index")
                codes = index[number][batch.column(at).to_numpy()]
                batch = batch.set_column(at, f"{kind}_index", pa.array(codes))
            found.append(batch)
        return found[0] if len(found) == 1 else pa.concat_batches(found)

    def remove(self) -> None:
        """Removes the files of the rows. The names stay."""
        for run in self._pieces:
            if run.place is not None:
                storage.remove(run.place)


class Sorter:
    """Takes the batches of a listing, and sorts them. Files are written below ``folder``, which is emptied before.

    ``unique``: the names of renderings are compared, too. It is for rows whose key is not that of their name.
    """

    def __init__(self, folder: str, unique: bool, run_bytes: int | None = None) -> None:
        self._folder, self._unique = folder, unique
        self._run_bytes = _RUN_BYTES if run_bytes is None else run_bytes
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._pieces: list[Pieces] = []
        self._names: dict[str, list[RunNames]] = {kind: [] for kind in (*NAMED, *(["rendering"] if unique else []))}

    @property
    def spilled(self) -> str | None:
        """The folder if files were written there, else None."""
        return self._folder if self._pieces and self._pieces[0].place is not None else None

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows with the columns `rayssl.data.listing.ROWS`. Raises `naming.RepeatedName`."""
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= self._run_bytes:
            self._seal(spill=True)

    def finish(self) -> Sorted:
        """All rows. Raises `naming.RepeatedName` if names must be unique, and one was found twice."""
        if self._held:
            self._seal(spill=bool(self._pieces))
        names, indices = {}, {}
        for kind, runs in self._names.items():
            place = storage.join(self._folder, f"{kind}-") if self.spilled else None
            names[kind], indices[kind] = naming.merge(runs, place, unique=kind == "rendering")
        return Sorted(self._pieces, {kind: names[kind] for kind in NAMED}, {kind: indices[kind] for kind in NAMED})

    def _seal(self, spill: bool) -> None:
        if spill and not self._pieces:
            storage.remove(self._folder, recursive=True)
        number = len(self._pieces)
        batch = pa.concat_batches(self._held)
        self._held, self._bytes = [], 0
        columns = {name: batch.column(name) for name in batch.schema.names}
        held = columns.pop("recording_name")
        for kind, runs in self._names.items():
            if kind == "rendering":
                column = rendered(columns["name"], columns["condition"].to_numpy())
            else:
                column = held if kind == "recording" else columns[NAMED[kind]]
            codes, names = naming.coded(column, unique=kind == "rendering")
            place = storage.join(self._folder, f"run-{number:05d}-{kind}") if spill else None
            runs.append(naming.run_names(names, place))
            if kind != "rendering":
                columns[f"{kind}_index"] = pa.array(codes)
        keys = columns["key"].to_numpy()
        order = np.argsort(keys)
        firsts = np.arange(1, 1 << _BITS, dtype=np.uint64) << np.uint64(64 - _BITS)
        bounds = np.array([0, *np.searchsorted(keys[order], firsts), len(order)], np.int64)
        batch = pa.record_batch(columns).take(pa.array(order))
        place = storage.join(self._folder, f"run-{number:05d}") if spill else None
        self._pieces.append(Pieces(batch, bounds, place))

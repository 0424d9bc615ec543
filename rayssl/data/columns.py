"""Arrow columns as bytes: texts for NumPy, tables cut into pieces in memory or in one file, and a digest of rows."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from rayssl import storage


def texts(column: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Where the texts of ``column [B]`` lie: offsets int32 ``[B + 1]`` into bytes uint8. A null is an empty text."""
    column = column.fill_null("")
    _, offsets, data = column.buffers()
    if not len(column):
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    places = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return places, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def packed(batch: pa.RecordBatch) -> bytes:
    """``batch`` as bytes that `unpacked` reads."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def unpacked(data: bytes | pa.Buffer) -> pa.RecordBatch:
    """The batch that `packed` wrote."""
    return pa.ipc.open_stream(data).read_next_batch()


class Pieces:
    """A table in pieces: piece k is the rows ``bounds[k]`` to ``bounds[k + 1] - 1`` of ``batch``.

    With ``place`` the pieces are written to this file, and only their offsets stay in memory. ``rows [P]`` counts the
    rows of each piece, and ``bytes`` those of all pieces.
    """

    def __init__(self, batch: pa.RecordBatch, bounds: np.ndarray, place: str | None = None) -> None:
        self.rows, self.bytes = np.diff(bounds), int(batch.nbytes)
        self.place, self._schema = place, batch.schema
        self._batch, self._starts = batch, bounds
        if place is not None:
            data, self._starts = _written(batch, bounds)
            storage.write_bytes(place, data)
            self._batch = None

    def span(self, piece: int) -> tuple[int, int]:
        """Where a piece lies in the file: its offset and its size in bytes."""
        return int(self._starts[piece]), int(self._starts[piece + 1] - self._starts[piece])

    def read(self, first: int, last: int) -> pa.RecordBatch:
        """The pieces ``first`` to ``last - 1``, as one batch."""
        start, end = int(self._starts[first]), int(self._starts[last])
        if self._batch is not None:
            return self._batch.slice(start, end - start)
        if start == end:
            return _empty(self._schema)
        data = pa.py_buffer(storage.read_range(str(self.place), start, end - start))
        places = self._starts[first : last + 1] - start
        found = [unpacked(data[a:b]) for a, b in itertools.pairwise(places) if b > a]
        return pa.concat_batches(found)


def digests(batch: pa.RecordBatch, bounds: np.ndarray, begun: Iterator[bytes]) -> list[str]:
    """A SHA-256 for each piece of ``batch``, from the bytes that ``begun`` gives for it and the values of its rows.

    The hash is of lengths (-1 for null), texts and integers, not of Arrow's files, which may change with its version.
    """
    hashes = [hashlib.sha256(first) for _, first in zip(range(len(bounds) - 1), begun, strict=False)]
    for column in batch.columns:
        if pa.types.is_string(column.type):
            places, data = texts(column)
            lengths = np.where(column.is_valid().to_numpy(zero_copy_only=False), np.diff(places), -1).astype("<i4")
            spans = [(lengths, bounds), (data, places[bounds])]
        else:
            numbers = column.to_numpy()
            spans = [(numbers.astype(numbers.dtype.newbyteorder("<")), bounds)]
        for values, cuts in spans:
            whole = np.ascontiguousarray(values).data
            for hashed, start, end in zip(hashes, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                hashed.update(whole[start:end])
    return [hashed.hexdigest() for hashed in hashes]


def _written(batch: pa.RecordBatch, bounds: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The pieces one after the other, and the offset at which each begins; an empty piece has no bytes."""
    buffer, starts = io.BytesIO(), [0]
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if end > start:
            with pa.ipc.new_stream(buffer, batch.schema) as writer:
                writer.write_batch(batch.slice(start, end - start))
        starts.append(buffer.tell())
    return buffer.getvalue(), np.array(starts, np.int64)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)

"""Reads some rows of a shard: only the row groups that contain them, by ranges of the file.

Row groups that lie together are one range. The ranges of a shard are requested at once. One request before reads its
footer, which says where row groups begin.

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.data import listed
from rayssl.data.shards import CHECKSUMS, KINDS, Shard
from rayssl.errors import CorpusError

_FOOTER = 1 << 15  # bytes of the file's end that are read first
_COLUMNS = ("audio", "samples", *KINDS)


@dataclass(frozen=True)
class ShardRows:
    """Some rows of a shard.

    ``rows``: their positions in the shard, int64 ``[n]``, ascending. ``audio``: the encoded audio of each, as a view.
    ``samples``, and ``columns`` by name (speaker, recording, label): int32 ``[n]`` each. ``verified``: the bytes were
    compared with the checksums of the shard's pages; shards of older corpora have none.
    """

    rows: np.ndarray
    audio: list[memoryview]
    samples: np.ndarray
    columns: dict[str, np.ndarray]
    verified: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes of the encoded audio."""
        return sum(len(audio) for audio in self.audio)

    def detached(self) -> ShardRows:
        """A copy that does not keep the other rows of the row groups in memory."""
        return replace(self, audio=[memoryview(bytes(audio)) for audio in self.audio])


def read_rows(uri: str, shard: Shard, rows: np.ndarray, group_rows: int) -> ShardRows:
    """The ``rows`` (positions, int64 ``[n]``, ascending, each once) of a shard of the corpus at ``uri``.

    ``group_rows`` is that of the manifest. Raises `CorpusError` if the shard is not what the manifest says, and
    `StorageError` if it cannot be read.
    """
    place = storage.join(uri, shard.path)
    size = group_rows or shard.rows
    groups = np.unique(rows // size)
    with listed.damage(place, "run rayssl prepare --verify"):
        footer = _footer(place, shard.bytes, shard.sha256)
        _check(place, footer, shard, size)
        ranges = _ranges(footer, groups)
        file = _Fetched(ranges, storage.read_ranges(place, ranges))
        read = listed.parquet_file(file, metadata=footer)
        # one by one: together their values would be appended to one array, which is copied each time it grows
        tables = [read.read_row_group(group, columns=list(_COLUMNS), use_threads=False) for group in groups.tolist()]
        table = pa.concat_tables(tables)
        held = np.concatenate([np.arange(group * size, min((group + 1) * size, shard.rows)) for group in groups])
        at = np.searchsorted(held, rows)
        audio = _views(table.column("audio"))
        columns = {name: table.column(name).to_numpy()[at] for name in ("samples", *KINDS)}
        verified = CHECKSUMS in (footer.metadata or {})
        return ShardRows(rows, [audio[k] for k in at], columns.pop("samples"), columns, verified)


@lru_cache(maxsize=256)
def _footer(place: str, size: int, sha256: str) -> pq.FileMetaData:
    """The footer of the shard at ``place``. ``size`` and ``sha256`` are the manifest's; a new corpus has other ones."""
    tail = min(_FOOTER, size)
    end = storage.read_range(place, size - tail, tail)
    if len(end) == tail >= 8 and end[-4:] == b"PAR1":
        needed = 8 + int.from_bytes(end[-8:-4], "little")
        if needed > tail:
            end = storage.read_range(place, max(0, size - needed), needed)
        return pq.read_metadata(pa.BufferReader(end))
    raise CorpusError(f"{place}: not the file that the manifest lists ({size} bytes); run rayssl prepare --verify")


def _check(place: str, footer: pq.FileMetaData, shard: Shard, size: int) -> None:
    if footer.num_rows != shard.rows:
        message = f"{place}: holds {footer.num_rows} rows, the manifest says {shard.rows}; run rayssl prepare --verify"
        raise CorpusError(message)
    if footer.num_row_groups != -(-shard.rows // size):
        message = f"{place}: has {footer.num_row_groups} row groups of other sizes than the manifest says"
        raise CorpusError(f"{message}; run rayssl prepare --verify")


def _ranges(footer: pq.FileMetaData, groups: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Start and size of the parts of the file that hold ``groups``; neighbours are one part."""
    ranges: list[tuple[int, int]] = []
    for group in map(int, groups):
        found = footer.row_group(group)
        chunks = [found.column(k) for k in range(found.num_columns) if found.column(k).path_in_schema in _COLUMNS]
        starts = [
            min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset) for chunk in chunks
        ]
        start = min(starts)
        stop = max(first + chunk.total_compressed_size for first, chunk in zip(starts, chunks, strict=True))
        if ranges and start - sum(ranges[-1]) < _FOOTER:
            ranges[-1] = (ranges[-1][0], stop - ranges[-1][0])
        else:
            ranges.append((start, stop - start))
    return ranges


def _views(audio: pa.ChunkedArray) -> list[memoryview]:
    """Each value of a binary column, without a copy."""
    views = []
    for chunk in audio.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        whole = memoryview(data)
        views += [whole[start:stop] for start, stop in pairwise(ends)]
    return views


class _Fetched(io.RawIOBase):
    """A file of which only some ranges are there: ``parts[k]`` holds the range ``ranges[k]`` (start, size)."""

    def __init__(self, ranges: Sequence[tuple[int, int]], parts: Sequence[pa.Buffer]) -> None:
        self._starts = np.array([start for start, _ in ranges])
        self._parts = [memoryview(part) for part in parts]
        self._end = max((sum(part) for part in ranges), default=0)
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to ``offset`` bytes from the beginning, the position, or the end of the last range."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        """``size`` bytes without a copy. Raises EOFError if a range ended early, or a byte was never fetched."""
        k = int(np.searchsorted(self._starts, self._at, side="right")) - 1
        start = self._at - int(self._starts[k])
        part = self._parts[k]
        if k < 0 or size < 0 or start + size > len(part):
            raise EOFError("the file ends early")
        self._at += size
        return part[start : start + size]

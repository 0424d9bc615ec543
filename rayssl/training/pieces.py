"""A memory's state in the folder of a checkpoint: one ``.npz`` for each piece.

``memory-index.npz``, ``memory-references-0000007000.npz``, ``memory-positives-0000007000.npz``; the number is that of
the first row. The process that holds the rows of a piece writes it, from a snapshot of them, so that they may change
meanwhile. Any number of stores can read what any other number has written. Each file has a record: its size, its
SHA-256, and its rows ``first`` to ``end - 1``. The records go into the checkpoint's ``meta.json``, written last.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from rayssl import storage
from rayssl.errors import CheckpointError, DamagedCheckpoint
from rayssl.memory.pieces import Kind, Piece, Read

Records: TypeAlias = dict[str, dict[str, Any]]  # the records of files, by file name

PREFIX = "memory-"
_INDEX = "memory-index.npz"
_AT_ONCE = 2  # pieces written at the same time: meanwhile each is in RAM a second time


def write(folder: str, pieces: Iterable[Piece]) -> Records:
    """Writes ``pieces`` into ``folder`` and returns the records of the files. It holds a few pieces at a time."""
    records: Records = {}
    running: deque[Future[tuple[str, dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for piece in pieces:
            running.append(pool.submit(_write, folder, piece))
            if len(running) == _AT_ONCE:  # before the next piece is made
                records.update([running.popleft().result()])
        records.update(future.result() for future in running)
    return records


def read_index(folder: str, records: Records) -> dict[str, np.ndarray]:
    """The arrays of the piece "index". Raises `CheckpointError` if there is none, or if it is damaged."""
    if _INDEX not in records:
        raise CheckpointError(f"{folder}: meta.json does not list {_INDEX}; delete this folder and resume")
    return _read(folder, _INDEX, records[_INDEX])


def reader(folder: str, records: Records) -> Read:
    """A function that reads pieces of ``records`` one at a time. It raises `CheckpointError` for a damaged piece."""

    def read(kind: Kind, first: int, end: int) -> Iterator[Piece]:
        names = sorted(name for name in records if name.startswith(f"{PREFIX}{kind}-"))
        for number, name in enumerate(names):
            record = records[name]
            if record["first"] < end and first < record["end"]:
                yield Piece(kind, number, record["first"], record["end"], _read(folder, name, record))

    return read


def verified(folder: str, name: str, record: dict[str, Any]) -> bytes:
    """The content of a file. Raises `CheckpointError` if its hash is not that of ``record``, or `StorageError`."""
    data = storage.read_bytes(storage.join(folder, name))
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise _damaged(storage.join(folder, name))
    return data


def _damaged(path: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path}: damaged (its hash differs from meta.json); delete this folder and resume")


def verified_file(folder: str, name: str, record: dict[str, Any]) -> io.BytesIO | str:
    """What `torch.load` can read of a file: the path of a local one, which was verified without holding it in memory.

    Else the content. Raises as `verified` does.
    """
    path = storage.join(folder, name)
    if storage.is_remote(path):
        return io.BytesIO(verified(folder, name, record))
    digest = hashlib.sha256()
    with storage.open_read(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != record["sha256"]:
        raise _damaged(path)
    return storage.filesystem(path)[1]


def recorded(folder: str, name: str, write: Callable[[BinaryIO], Any]) -> dict[str, Any]:
    """Writes a file, of what ``write`` writes to the stream that it is given, and returns its record."""
    record: dict[str, Any] = {}

    def send(stream: BinaryIO) -> None:
        hashed = _Hashed(stream)
        write(hashed)  # type: ignore[arg-type]
        record.update({"bytes": hashed.size, "sha256": hashed.digest.hexdigest()})

    storage.write_stream(storage.join(folder, name), send)
    return record


class _Hashed(io.RawIOBase):
    """A stream that passes on what is written to it. It cannot go back, so what is hashed is what is stored."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest, self.size = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._stream.write(data)
        self.digest.update(data)
        count = memoryview(data).nbytes
        self.size += count
        return count


def foreign(folder: str, name: str) -> CheckpointError:
    """The error for a file that rayssl has not written."""
    return CheckpointError(
        f"{folder}/{name}: not written by rayssl (it holds more than numbers and text); delete this folder and resume"
    )


def _write(folder: str, piece: Piece) -> tuple[str, dict[str, Any]]:
    index = piece.kind == "index"
    name = _INDEX if index else f"{PREFIX}{piece.kind}-{piece.number:010d}.npz"
    record = recorded(folder, name, lambda stream: np.savez(stream, **piece.arrays))  # type: ignore[arg-type]
    return name, record if index else {**record, "first": piece.first, "end": piece.end}


def _read(folder: str, name: str, record: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(verified(folder, name, record)), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except CheckpointError:
        raise
    except ValueError as error:
        raise foreign(folder, name) from error

"""A file as ranges of its bytes with other bytes between them: a corrected header costs no copy of what follows it.

The same code examines a short file, which is bytes, and a long one, which is a `Window`: a part of it is in memory.
"""

from __future__ import annotations

import bisect
import io
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias, overload

from rayssl.errors import StorageError

_BLOCK = 1 << 20  # bytes of a long file that are held at a time

#: The bytes of a file.
Data: TypeAlias = "bytes | Window"


class Window:
    """The bytes of an open file from ``start`` on. It answers as `bytes` do, and holds one block of them."""

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        self.file, self.start = file, start
        self._size = max(0, file.seek(0, os.SEEK_END) - start)
        self._at, self._held = 0, b""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: int | slice) -> int | bytes:
        if isinstance(at, int):
            if not 0 <= at < self._size:
                raise IndexError(at)
            return self._read(at, at + 1)[0]
        start, stop, _ = at.indices(self._size)
        return self._read(start, max(start, stop))

    def startswith(self, prefix: bytes, at: int = 0) -> bool:
        """Whether ``prefix`` is at ``at``."""
        return self._read(at, at + len(prefix)) == prefix

    def find(self, sought: bytes, start: int, stop: int | None = None) -> int:
        """Where the first byte ``sought`` is, in ``start`` to ``stop``; -1 if it is nowhere."""
        end = self._size if stop is None else min(stop, self._size)
        while start < end:
            block = self._read(start, min(end, start + _BLOCK))
            found = block.find(sought)
            if found >= 0:
                return start + found
            start += len(block)
        return -1

    def _read(self, start: int, stop: int) -> bytes:
        stop = min(stop, self._size)
        if not self._at <= start <= stop <= self._at + len(self._held):
            self.file.seek(self.start + start)
            block = self.file.read(max(stop - start, _BLOCK))
            if len(block) > 2 * _BLOCK:
                return block[: max(0, stop - start)]
            self._at, self._held = start, block
        return self._held[start - self._at : max(start, stop) - self._at]


def after(data: Data, start: int) -> Data:
    """``data`` without what is before ``start``."""
    if not start:
        return data
    return data[start:] if isinstance(data, bytes) else Window(data.file, data.start + start)


def unpack(layout: str, data: Data, at: int) -> tuple[Any, ...]:
    """What `struct.unpack_from` gives."""
    if isinstance(data, bytes):
        return struct.unpack_from(layout, data, at)
    return struct.unpack(layout, data[at : at + struct.calcsize(layout)])


@dataclass(frozen=True)
class Spliced:
    """Pieces one after the other: other bytes, or (start, stop) of the bytes of ``data``."""

    data: Data
    pieces: tuple[bytes | tuple[int, int], ...]

    def whole(self) -> bytes:
        """All of it in memory. What is only ``data`` itself is not copied."""
        if self.pieces == ((0, len(self.data)),) and isinstance(self.data, bytes):
            return self.data
        return b"".join(piece if isinstance(piece, bytes) else self.data[slice(*piece)] for piece in self.pieces)

    def opened(self) -> SplicedFile:
        """All of it as a file, of a `Window`."""
        assert isinstance(self.data, Window)
        return SplicedFile(self.data, self.pieces)


def whole(data: Data) -> Spliced:
    """All of ``data``."""
    return Spliced(data, ((0, len(data)),))


class SplicedFile(io.RawIOBase):
    """The pieces of a `Spliced` as a file for a decoder in C, to which no exception can be raised.

    After an error of the storage it ends; `error` keeps the first one, and who reads must raise it.
    """

    def __init__(self, data: Window, pieces: tuple[bytes | tuple[int, int], ...]) -> None:
        self.error: StorageError | None = None
        self._data, self._position = data, 0
        self._pieces = [piece for piece in pieces if isinstance(piece, bytes) or piece[0] < piece[1]]
        self._ends = [0]
        for piece in self._pieces:
            self._ends.append(
                self._ends[-1] + (len(piece) if isinstance(piece, bytes) else min(piece[1], len(data)) - piece[0])
            )

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of every file; a damaged header may ask for a place before the beginning, which is the beginning."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer; less only at the end, and nothing after an error."""
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and self._position < self._ends[-1] and self.error is None:
            number = bisect.bisect_right(self._ends, self._position) - 1
            inside, left = self._position - self._ends[number], self._ends[number + 1] - self._position
            piece, count = self._pieces[number], min(left, len(view) - done)
            try:
                part = self._part(piece, inside, count)
            except StorageError as error:
                self.error = error
                break
            if not part:
                break
            view[done : done + len(part)] = part
            done, self._position = done + len(part), self._position + len(part)
        return done

    def _part(self, piece: bytes | tuple[int, int], inside: int, count: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[inside : inside + count]
        start = piece[0] + inside
        return self._data[start : start + count]

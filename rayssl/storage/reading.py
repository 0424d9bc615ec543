"""Reads whole files and ranges of them: by pyarrow from S3, gs and az, by `os.pread` from disks, else by fsspec.

pyarrow needs a third of the processor's time of s3fs and reads without Python's lock. It asks for a file's size before
the first range, which is one more request. So the open file is kept: a later range that ends before that size needs
no such request, and one that does not asks again. The store is asked for every byte: what it holds now is read, also if
the file was replaced in between, by a longer or a shorter one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rayssl.errors import StorageError
from rayssl.storage import stores
from rayssl.storage.attempts import attempt, is_passing

if TYPE_CHECKING:
    import pyarrow as pa

IN_FLIGHT = 8  # ranges that one process reads at the same time
_FIRST_BYTES = 512 << 10
_FILES_KEPT = 1024
_UNREAD = b"\xa5"

T = TypeVar("T")


class _Kept:
    """What one process keeps: its open files and its threads. A forked process makes its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: OrderedDict[tuple[int, str], tuple[Any, pa.NativeFile]] = OrderedDict()
        self.threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="rayssl-read")


_of_process: dict[int, _Kept] = {}


def whole(uri: str) -> bytes:
    """The content of the file at ``uri``, all of it from one version of the file."""
    fs, path = stores.filesystem(uri)
    if stores.scheme(uri) == "s3":
        # One request and no more for a small file. A replaced file cannot be read half old, half new so.
        first = attempt(uri, lambda: _piece(fs, path, 0, _FIRST_BYTES))
        if len(first) < _FIRST_BYTES:
            return first
    found = stores.arrow_filesystem(uri)
    if found is None:
        return cast(bytes, attempt(uri, lambda: fs.cat_file(path)))
    remote = _Remote(uri, *found)
    return attempt(uri, lambda: remote.asked(remote.whole))


def ranges(uri: str, wanted: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
    """The bytes of each (start, size) of ``wanted``, in order; fewer where the file ends earlier."""
    if any(start < 0 or size < 0 for start, size in wanted):
        raise ValueError(f"{uri}: a range has a negative start or size")
    if not wanted:
        return []
    import pyarrow as pa

    found = stores.arrow_filesystem(uri)
    if found is None:
        fs, path = stores.filesystem(uri)
        if stores.scheme(uri) == "file":
            return [pa.py_buffer(data) for data in attempt(uri, lambda: _local(path, wanted))]
        return [pa.py_buffer(attempt(uri, partial(_other, fs, path, start, size))) for start, size in wanted]
    remote = _Remote(uri, *found)
    length = attempt(uri, lambda: remote.asked(lambda: remote.opened(max(map(sum, wanted))))).size()
    held = [(start, max(0, min(size, length - start))) for start, size in wanted]
    if len(held) == 1:
        return [remote.read(*held[0])]
    try:
        futures = [_kept().threads.submit(remote.read, start, size) for start, size in held]
    except RuntimeError:  # Python takes no new work of threads at its end
        raise StorageError(f"{uri}: not read; this process is ending") from None
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()  # after an error: those that have not begun


def size(uri: str) -> int:
    """The size of the file at ``uri`` in bytes, asked anew."""
    found = stores.arrow_filesystem(uri)
    if found is None:
        fs, path = stores.filesystem(uri)
        return int(attempt(uri, lambda: fs.info(path))["size"])
    remote = _Remote(uri, *found)
    return int(attempt(uri, lambda: remote.asked(remote.open)).size())


class _Remote:
    """One file of a store that pyarrow knows."""

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self._uri, self._fs, self._path = uri, fs, path
        self._key = (id(fs), path)  # what is kept holds `fs`: no other one gets its id

    def asked(self, action: Callable[[], T]) -> T:
        """The result of ``action``. If S3 refuses it, raises the error of s3fs, which has the server's reason."""
        try:
            return action()
        except OSError as error:
            if stores.scheme(self._uri) == "s3" and not is_passing(error):
                # pyarrow asked by HEAD, and the answer to that has no body: another way of asking has
                fs, path = stores.filesystem(self._uri)
                fs.cat_file(path, start=0, end=1)
            raise

    def opened(self, end: int) -> pa.NativeFile:
        """The open file: the kept one if it has at least ``end`` bytes, else one whose size was asked now."""
        kept = _kept()
        with kept.lock:
            found = kept.files.get(self._key)
            if found is not None and found[1].size() >= end:
                kept.files.move_to_end(self._key)
                return found[1]
        return self.open()

    def open(self) -> pa.NativeFile:
        """The file, whose size was asked now."""
        file, kept = self._fs.open_input_file(self._path), _kept()
        with kept.lock:
            kept.files[self._key] = (self._fs, file)
            kept.files.move_to_end(self._key)
            while len(kept.files) > _FILES_KEPT:
                kept.files.popitem(last=False)
        return file

    def read(self, start: int, size: int) -> pa.Buffer:
        """``size`` bytes from ``start``; fewer only if the file has become shorter."""
        return attempt(self._uri, lambda: self.asked(lambda: self._read(start, size)))

    def _read(self, start: int, size: int) -> pa.Buffer:
        import pyarrow as pa

        file = self.opened(start + size) if size else None
        left = min(size, file.size() - start) if file is not None else 0
        if file is None or left <= 0:
            return pa.py_buffer(b"")
        buffer = pa.allocate_buffer(left)
        last = memoryview(buffer).cast("B")[-1:]
        last[:] = _UNREAD
        try:
            count = file.get_stream(start, left).readinto(buffer)
        except OSError as error:
            if not is_passing(error):
                self._forget()  # perhaps the file is shorter now: the next attempt asks
            raise
        # pyarrow does not tell that S3 sent fewer bytes, because the file has become shorter: the rest was not written
        if count < left or (last == _UNREAD and self.open().size() < start + left):
            self._forget()
            raise OSError(errno.EAGAIN, "was replaced by a shorter file")
        return buffer

    def _forget(self) -> None:
        kept = _kept()
        with kept.lock:
            kept.files.pop(self._key, None)

    def whole(self) -> bytes:
        """All bytes."""
        file = self.open()
        data = cast(bytes, file.read_at(file.size(), 0)) if file.size() else b""
        if self._fs.get_file_info(self._path).size != len(data):
            raise OSError(errno.EAGAIN, "was replaced while it was read")
        return data


def _kept() -> _Kept:
    found = _of_process.get(os.getpid())
    return found if found is not None else _of_process.setdefault(os.getpid(), _Kept())


def _local(path: str, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_pread(descriptor, start, size) for start, size in wanted]
    finally:
        os.close(descriptor)


def _pread(descriptor: int, start: int, size: int) -> bytes:
    data = os.pread(descriptor, size, start)
    while 0 < len(data) < size:  # the end of the file, or the kernel's limit of 2 GiB
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def _piece(fs: Any, path: str, start: int, size: int) -> bytes:
    try:
        return cast(bytes, fs.cat_file(path, start=start, end=start + size))
    except OSError as error:
        if error.errno == errno.EINVAL:  # s3fs reports a range that begins after the end of the file so
            return b""
        raise


def _other(fs: Any, path: str, start: int, size: int) -> bytes:
    with fs.open(path, "rb", cache_type="none") as file:
        file.seek(start)
        return cast(bytes, file.read(size))

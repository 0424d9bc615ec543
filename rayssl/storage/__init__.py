"""Files on a local disk or in an object store, behind one set of functions and one kind of error.

A URI is ``s3://bucket/key``, ``file:///absolute/path`` or a plain local path. ``gs://bucket/key`` and
``az://container/key`` go by pyarrow, any other scheme by fsspec if its package is installed. Addresses and keys come
from environment variables, never from a configuration file:

    s3  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; without keys the machine's role
    gs  GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST; without them the machine's role
    az  AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN or the machine's identity

Every function that reads or writes raises `StorageError`: one line that names the URI and says what to do. After a
connection reset, a stall or a server error the operation is tried again, `ATTEMPTS` times in all, or for the time of
`be_patient`. No message contains a secret. For example::

    storage.write_text("s3://bucket/run/notes.txt", "first try")
    storage.list_files("s3://bucket/run", suffixes=[".txt"])   # ["s3://bucket/run/notes.txt"]
"""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rayssl.errors import StorageError
from rayssl.storage import reading, stores
from rayssl.storage.attempts import ABSENT, ATTEMPTS, attempt, be_patient
from rayssl.storage.stores import filesystem

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ABSENT", "ATTEMPTS", "absolute", "be_patient", "check_writable", "exists", "filesystem", "is_file", "join",
    "list_files", "open_read", "read_bytes", "read_range", "read_ranges", "read_text", "remove", "remove_unfinished",
    "write_bytes", "write_stream", "write_text",
]  # fmt: skip

_PART_BYTES = 64 << 20  # of a file that is sent as a stream


def absolute(uri: str) -> str:
    """``uri`` in a form that is valid in any working folder. A local path becomes absolute, and a file URI such a path.

    Names can be joined to a path as they are. In a file URI ``%23`` is ``#``.
    """
    return uri if is_remote(uri) else stores.local_path(uri)


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` appended, with one slash between them.

    Raises:
        StorageError: ``uri`` is an object store's, and names no bucket: the first of the parts would be taken for one.
    """
    kept = uri.rstrip("/")
    if kept.endswith(":") and "://" in uri:
        stores.bucket_of(uri)
        kept = "file://"  # the root of the disk
    return "/".join([kept, *(part.strip("/") for part in parts)])


def is_remote(uri: str) -> bool:
    """Whether ``uri`` is in an object store, and not on a disk of this machine."""
    return stores.scheme(uri) != "file"


def exists(uri: str) -> bool:
    """Whether a file or folder exists at ``uri``.

    Raises:
        StorageError: there is no such bucket, or access is denied. These cases never return False.
    """
    fs, path = filesystem(uri)
    try:
        attempt(uri, lambda: fs.info(path))
    except StorageError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def is_file(uri: str) -> bool:
    """Whether a file exists at ``uri``. False for a folder."""
    fs, path = filesystem(uri)
    return exists(uri) and bool(attempt(uri, lambda: fs.isfile(path)))


def list_files(uri: str, suffixes: Sequence[str] = ()) -> list[str]:
    """The full URIs of all files below the folder ``uri``, in subfolders too, sorted.

    Args:
        uri: a folder. The result is empty if it does not exist.
        suffixes: if given, only files that end in one of these, in upper or lower case.
    """
    wanted = tuple(suffix.lower() for suffix in suffixes)
    names = [name for name in _names(uri) if not _is_unfinished(name)]
    return [join(uri, name) for name in names if not wanted or name.lower().endswith(wanted)]


def read_bytes(uri: str) -> bytes:
    """The whole content of the file at ``uri``, of one version of it also if it is replaced meanwhile."""
    return reading.whole(uri)


def read_range(uri: str, start: int, size: int) -> bytes:
    """``size`` bytes of the file at ``uri``, from offset ``start``; fewer, or none, if the file ends earlier."""
    return bytes(reading.ranges(uri, [(start, size)])[0])


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[pa.Buffer]:
    """Several ranges of the file at ``uri``, read at the same time from an object store, at most 8 in the process.

    Each range is one request, and is tried again alone. The first read of a file in this process is one request more,
    for its size. Threads may call this at the same time.

    Args:
        uri: a file.
        ranges: (start, size) of each range in bytes, in any order; they may overlap. A range of a few MiB makes the
            most of a request; 8 such ranges in flight are what the memory must hold besides the result.

    Returns:
        One buffer for each range, in the order of ``ranges``. It has fewer bytes than ``size``, or none, if the file
        ends earlier.

    Raises:
        StorageError: a range could not be read in `ATTEMPTS` attempts.
        ValueError: a start or a size is negative.
    """
    return reading.ranges(uri, ranges)


def read_text(uri: str) -> str:
    """The file at ``uri`` as text, without a byte-order mark. Raises `StorageError` if it is not UTF-8."""
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StorageError(f"{uri}: not UTF-8 text (byte {error.start})") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Writes ``data`` to the file at ``uri``, atomically: a reader sees the old content or the new one, never a part.

    Missing local folders are created. A missing bucket is an error.
    """
    fs, path = filesystem(uri)
    if is_remote(uri):
        attempt(uri, lambda: fs.pipe_file(path, data))
        return
    _write_local(uri, path, lambda file: file.write(data))


def write_stream(uri: str, write: Callable[[BinaryIO], Any]) -> None:
    """`write_bytes` of what ``write`` writes to the file that it is given, which has no other method than ``write``.

    At most some MB of it are held in memory. After an error that may pass, ``write`` is called again.
    """
    fs, path = filesystem(uri)
    if not is_remote(uri):
        _write_local(uri, path, write)
        return

    def send() -> None:
        file = fs.open(path, "wb", block_size=_PART_BYTES)
        try:
            write(file)
            file.close()
        except BaseException:
            if hasattr(file, "discard"):  # closed later, by Python, it would be sent again, with a part missing
                with suppress(Exception):  # the store that failed may not answer to this either
                    file.discard()
                file.closed = True
            raise

    attempt(uri, send)


def _write_local(uri: str, path: str, write: Callable[[BinaryIO], Any]) -> None:
    try:
        attempt(uri, lambda: _replace(path, write))
    except StorageError as error:
        if error.errno in ABSENT:  # a folder above it is a file, or no folder can be made
            raise StorageError(f"{uri}: cannot be written: its folder cannot be made") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(f"{uri}: cannot be written: {os.strerror(error.errno).lower()}") from None
        raise


def check_writable(folder: str) -> None:
    """Raises `StorageError` if no file can be written below ``folder``: to be told before long work, not after it.

    It writes a file and removes it.
    """
    place = join(folder, f".{uuid.uuid4().hex[:12]}.part")
    above = None if is_remote(folder) else _existing(absolute(folder))
    try:
        write_bytes(place, b"")
    except StorageError as error:
        raise StorageError(str(error).replace(place, folder, 1)) from None
    remove(place)
    if above is not None:
        made = filesystem(folder)[1]
        while made != above and not os.listdir(made):
            os.rmdir(made)
            made = os.path.dirname(made)


def _existing(path: str) -> str:
    """``path``, or the first folder above it that exists."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def write_text(uri: str, text: str) -> None:
    """Writes ``text`` as UTF-8 to the file at ``uri``, atomically (see `write_bytes`)."""
    write_bytes(uri, text.encode())


def open_read(uri: str, start: int = 0, size: int | None = None) -> BinaryIO:
    """Opens the file at ``uri`` as a seekable binary file that is read in pieces. Reading raises `StorageError` too.

    ``start`` and ``size``: opens only this range of it, as if it were a file.
    """
    whole = _Ranges(uri, start, max(0, reading.size(uri) - start) if size is None else size)
    return cast(BinaryIO, io.BufferedReader(whole, buffer_size=1 << 20))


def remove(uri: str, recursive: bool = False) -> None:
    """Removes the file at ``uri``; with ``recursive`` the folder and everything below it.

    It is no error if nothing exists there.
    """
    if recursive:
        for name in _names(uri):
            remove(join(uri, name))
        if not is_remote(uri):
            _remove_empty_folders(filesystem(uri)[1])
        return
    fs, path = filesystem(uri)
    try:
        attempt(uri, lambda: fs.rm_file(path))
    except StorageError as error:
        if error.errno not in ABSENT:
            raise


def remove_unfinished(folder: str) -> None:
    """Removes what killed calls of `write_bytes` have left below ``folder``, where nothing else may be written now.

    Only a local disk has such files.
    """
    if is_remote(folder):
        return
    for place, _, names in os.walk(filesystem(folder)[1]):
        for name in filter(_is_unfinished, names):
            path = os.path.join(place, name)
            attempt(folder, lambda path=path: os.remove(path))  # type: ignore[misc]
        if not os.listdir(place):
            _remove_empty_folders(place)


class _Ranges(io.RawIOBase):
    """A file that is read by ranges. Each range is read by `read_range`, with its retries and errors."""

    def __init__(self, uri: str, start: int, size: int) -> None:
        self._uri, self._start, self._size, self._position = uri, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readall(self) -> bytes:
        data = read_range(self._uri, self._start + self._position, max(0, self._size - self._position))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        data = read_range(self._uri, self._start + self._position, wanted) if wanted else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _names(uri: str) -> list[str]:
    """The paths of all files below the folder ``uri``, relative to it, sorted."""
    path = filesystem(uri)[1]
    found = attempt(uri, lambda: _find(uri))
    return sorted(str(name)[len(path.rstrip("/")) + 1 :] for name in found if str(name) != path)


def _find(uri: str) -> list[str]:
    fs, path = filesystem(uri)
    if not is_remote(uri):
        return list(_local(path, frozenset())) if os.path.isdir(path) else []
    if stores.scheme(uri) == "s3":
        return list(fs.find(path))
    found = stores.arrow_filesystem(uri)
    if found is not None:
        from pyarrow.fs import FileSelector

        selector = FileSelector(found[1], recursive=True, allow_not_found=True)
        return [info.path for info in found[0].get_file_info(selector) if info.is_file]
    # as it is, fsspec lists nothing where it gets no answer; the client of Hugging Face raises, and has no such option
    how = {} if stores.scheme(uri) == "hf" else {"on_error": "raise"}
    try:
        return list(fs.find(path, **how))
    except FileNotFoundError:
        return []


def _local(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """The files below ``folder``. Links are followed; a link to a folder ``above`` it would never end, and is not.

    A link to nothing counts as a file: whoever reads it is told.
    """
    here = os.stat(folder)
    inside = above | {(here.st_dev, here.st_ino)}
    if inside == above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _local(entry.path, inside)
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                yield entry.path


def _is_unfinished(name: str) -> bool:
    """Whether ``name`` is a temporary file that a killed `write_bytes` left."""
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(".part")


def _replace(path: str, write: Callable[[BinaryIO], Any]) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid.uuid4().hex[:12]}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def _remove_empty_folders(path: str) -> None:
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return

"""Files on a local disk or in an object store, behind one set of functions and one kind of error.

A URI is ``s3://bucket/key``, ``file:///absolute/path`` or a plain local path. The address and the keys of the object
store come from environment variables, never from a configuration file: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``. Without keys, the role of the machine is used.

Every function that reads or writes raises `StorageError`: one line that names the URI and says what to do. After a
connection reset, a stall or a server error the operation is tried again, `ATTEMPTS` times in all. No message contains
a secret. For example::

    storage.write_text("s3://bucket/run/notes.txt", "first try")
    storage.list_files("s3://bucket/run", suffixes=[".txt"])   # ["s3://bucket/run/notes.txt"]
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

import botocore.exceptions  # type: ignore[import-untyped, unused-ignore]
import fsspec

from rayssl.errors import StorageError

ATTEMPTS = 4
_FIRST_WAIT_S = 0.2
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 30
_DENIED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "ExpiredToken", "403", "401")
ABSENT = (errno.ENOENT, errno.ENOTDIR)  # `StorageError.errno` is one of these if there is no such file

T = TypeVar("T")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of ``uri``, and the path on it.

    Raises:
        StorageError: the scheme is not supported, a file URI is not absolute, or an s3 URI names no bucket.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        path = unquote(urlsplit(uri).path)
        if not path.startswith("/") or not rest.startswith("/"):
            raise StorageError(f"{uri}: write a file URI with an absolute path, file:///folder/name")
        return fsspec.filesystem("file"), os.path.abspath(path)
    if scheme == "s3":
        if not rest.partition("/")[0]:
            raise StorageError(f"{uri}: names no bucket; write s3://bucket/key")
        return _s3(), rest.rstrip("/")
    raise StorageError(f"{uri}: '{scheme}://' is not supported; use s3://bucket/key, file:///path or a local path")


def absolute(uri: str) -> str:
    """``uri`` in a form that is valid in any working folder: a relative local path becomes absolute."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` appended, with one slash between them."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether a file or folder exists at ``uri``.

    Raises:
        StorageError: there is no such bucket, or access is denied. These cases never return False.
    """
    fs, path = filesystem(uri)
    try:
        _attempt(uri, lambda: fs.info(path))
    except StorageError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def is_file(uri: str) -> bool:
    """Whether a file exists at ``uri``. False for a folder."""
    fs, path = filesystem(uri)
    return exists(uri) and bool(_attempt(uri, lambda: fs.isfile(path)))


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
    """The whole content of the file at ``uri``."""
    fs, path = filesystem(uri)
    return cast(bytes, _attempt(uri, lambda: fs.cat_file(path)))


def read_range(uri: str, start: int, size: int) -> bytes:
    """``size`` bytes of the file at ``uri``, from offset ``start``; fewer, or none, if the file ends earlier."""
    fs, path = filesystem(uri)

    def read() -> bytes:
        try:
            return cast(bytes, fs.cat_file(path, start=start, end=start + size))
        except OSError as error:
            if error.errno == errno.EINVAL:  # s3fs reports a range that begins after the end of the file so
                return b""
            raise

    return _attempt(uri, read)


def read_text(uri: str) -> str:
    """The content of the file at ``uri`` as text; raises `StorageError` if it is not UTF-8."""
    try:
        return read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"{uri}: not UTF-8 text (byte {error.start})") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Writes ``data`` to the file at ``uri``, atomically: a reader sees the old content or the new one, never a part.

    Missing local folders are created. A missing bucket is an error.
    """
    fs, path = filesystem(uri)
    if _is_remote(uri):
        _attempt(uri, lambda: fs.pipe_file(path, data))
    else:
        _attempt(uri, lambda: _replace(path, data))


def write_text(uri: str, text: str) -> None:
    """Writes ``text`` as UTF-8 to the file at ``uri``, atomically (see `write_bytes`)."""
    write_bytes(uri, text.encode())


def open_read(uri: str) -> BinaryIO:
    """Opens the file at ``uri`` as a seekable binary file that is read in pieces. Reading raises `StorageError` too."""
    fs, path = filesystem(uri)
    size = int(_attempt(uri, lambda: fs.info(path))["size"])
    return cast(BinaryIO, io.BufferedReader(_Ranges(uri, size), buffer_size=1 << 20))


def remove(uri: str, recursive: bool = False) -> None:
    """Removes the file at ``uri``; with ``recursive`` the folder and everything below it.

    It is no error if nothing exists there.
    """
    if recursive:
        for name in _names(uri):
            remove(join(uri, name))
        if not _is_remote(uri):
            _remove_empty_folders(filesystem(uri)[1])
        return
    fs, path = filesystem(uri)
    try:
        _attempt(uri, lambda: fs.rm_file(path))
    except StorageError as error:
        if error.errno not in ABSENT:
            raise


class _Ranges(io.RawIOBase):
    """A file that is read by ranges. Each range is read by `read_range`, with its retries and errors."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri, self._size, self._position = uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readall(self) -> bytes:
        data = read_range(self._uri, self._position, max(0, self._size - self._position))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        data = read_range(self._uri, self._position, wanted) if wanted else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _names(uri: str) -> list[str]:
    """The paths of all files below the folder ``uri``, relative to it, sorted."""
    fs, path = filesystem(uri)
    found = _attempt(uri, lambda: fs.find(path) if _is_remote(uri) or os.path.isdir(path) else [])
    return sorted(str(name)[len(path.rstrip("/")) + 1 :] for name in found if str(name) != path)


def _is_unfinished(name: str) -> bool:
    """Whether ``name`` is a temporary file that a killed `write_bytes` left."""
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(".part")


def _is_remote(uri: str) -> bool:
    return uri.startswith("s3://")


def _s3() -> fsspec.AbstractFileSystem:
    # The keys are passed explicitly so that fsspec's instance cache follows the environment. Only `_attempt` retries:
    # the layers below would multiply the retries, and a refused connection would take a minute to be reported.
    fs = fsspec.filesystem(
        "s3",
        key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        token=os.environ.get("AWS_SESSION_TOKEN"),
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        use_listings_cache=False,
        config_kwargs={
            "retries": {"max_attempts": 0},
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
        },
    )
    fs.retries = 1
    return fs


def _attempt(uri: str, action: Callable[[], T]) -> T:
    """The result of ``action``, which is tried again after transient errors. Storage errors become `StorageError`."""
    wait = _FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not _is_storage_failure(error):
                raise
            if attempt == ATTEMPTS or not _is_transient(uri, error):
                raise _explain(uri, error) from None
        time.sleep(wait)
        wait *= 3
    raise AssertionError("unreachable")


def _is_storage_failure(error: Exception) -> bool:
    kinds = (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, asyncio.TimeoutError)
    return isinstance(error, kinds) or type(error).__module__.startswith(("aiohttp", "aiobotocore", "fsspec", "s3fs"))


def _is_transient(uri: str, error: Exception) -> bool:
    if not _is_remote(uri) or isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.ParamValidationError)):
        return False
    status = int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status == 0 or status == 429 or status >= 500


def _response(error: BaseException) -> dict[str, Any]:
    """The server's answer that led to an error of s3fs, whose cause is botocore's error; empty without an answer."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _explain(uri: str, error: Exception) -> StorageError:
    if not _is_remote(uri):
        return _explain_local(uri, error)
    code = str(_response(error).get("Error", {}).get("Code", ""))
    text = " ".join(str(error).split())
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return _error(errno.EINVAL, f"{uri}: not the URI of a file; write s3://bucket/key")
    if code == "NoSuchBucket" or "bucket does not exist" in text:
        return _error(errno.ENXIO, f"{uri}: there is no bucket '{bucket}'; create it, or correct the URI")
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return _error(errno.EACCES, f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, PermissionError) or code in _DENIED:
        message = f"{uri}: access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        return _error(errno.EACCES, message)
    if isinstance(error, FileNotFoundError):
        return _explain_absent(uri, bucket)
    if _response(error):
        return _error(errno.EIO, f"{uri}: the object store answered '{text}'")
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or "the default AWS endpoint (AWS_ENDPOINT_URL is not set)"
    failed = "no answer from" if "Connect" in type(error).__name__ else "no whole answer from"
    message = (
        f"{uri}: {failed} {endpoint} in {ATTEMPTS} attempts ({type(error).__name__}); is it running and reachable?"
    )
    return _error(errno.EIO, message)


def _explain_absent(uri: str, bucket: str) -> StorageError:
    # The answer to a HEAD request has no body. Only a request for the bucket shows whether key or bucket is absent.
    try:
        _s3().call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FileNotFoundError:
        return _error(errno.ENXIO, f"{uri}: there is no bucket '{bucket}'; create it, or correct the URI")
    except Exception:
        pass  # perhaps the keys may not list the bucket: the plain message is still true
    return _error(errno.ENOENT, f"{uri}: no such file")


def _error(number: int, message: str) -> StorageError:
    # the number is not passed to the constructor: OSError would print it before the message
    error = StorageError(message)
    error.errno = number
    return error


def _explain_local(uri: str, error: Exception) -> StorageError:
    number = getattr(error, "errno", None) or (errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO)
    if number in ABSENT:
        return _error(number, f"{uri}: no such file")
    return _error(number, f"{uri}: {os.strerror(number).lower()}")


def _replace(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid.uuid4().hex[:12]}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
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


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[Any]:
    """placeholder"""
    return [read_range(uri, start, size) for start, size in ranges]

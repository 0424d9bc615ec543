"""Files of a corpus that its manifest lists with a hash: read with the hash compared, or examined for what is wrong."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.errors import CorpusError, StorageError, UserError

T = TypeVar("T")

#: What pyarrow and the reading of its values raise over damaged Parquet files.
DAMAGE = (pa.ArrowException, OSError, EOFError, LookupError, ValueError, TypeError, OverflowError, MemoryError)


def read(place: str, sha256: str) -> bytes:
    """The content of the file at ``place``. Raises `CorpusError` if its hash is not ``sha256``."""
    data = storage.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorpusError(f"{place}: not the file that the manifest lists (sha256 differs); run rayssl prepare again")
    return data


def examine(
    place: str, sha256: str, parse: Callable[[bytes], T], what: str, size: int | None = None
) -> tuple[T | None, list[str]]:
    """What ``parse`` gives for the file at ``place``, or None, and a line for each problem.

    ``parse`` raises `CorpusError`, or what pyarrow raises, if the content is not ``what``; if ``what`` is empty, the
    line has the error instead. ``size``: how many bytes the manifest says; for the message.
    """
    try:
        data = storage.read_bytes(place)
    except StorageError as error:
        if error.errno not in storage.ABSENT:
            raise
        return None, [f"{place}: absent"]
    found = []
    if hashlib.sha256(data).hexdigest() != sha256:
        sizes = "" if size is None else f", {len(data)} of {size} bytes"
        found.append(f"{place}: content differs from the manifest (sha256{sizes})")
    try:
        return parse(data), found
    except (CorpusError, *DAMAGE) as error:
        return None, [*found, f"{place}: not a Parquet file {f'of {what}' if what else f'({first_line(error)})'}"]


@contextmanager
def damage(place: str, advice: str) -> Iterator[None]:
    """Turns what pyarrow raises over a damaged file into a `CorpusError` of one line, with ``advice`` at its end."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        text = f"damaged, or not a Parquet file ({first_line(error) or type(error).__name__})"
        raise CorpusError(f"{place}: {text}; {advice}") from None


def parquet(data: bytes) -> pa.Table:
    """The table in a Parquet file; pages are compared with their checksums. Raises pa.ArrowException or OSError."""
    return parquet_file(io.BytesIO(data)).read(use_threads=False)


def parquet_file(file: Any, **options: Any) -> pq.ParquetFile:
    """Opens a Parquet file that Python reads; pages are compared with their checksums. Read it with use_threads=False.

    No thread of pyarrow may read it: such a thread gives the bytes back to Python a moment after the result has come,
    and if the process ends in that moment, it aborts.
    """
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, **options)


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 120 characters."""
    return str(error).strip().split("\n")[0][:120].rstrip(".")

"""The runs of a corpus of nights: which of its rows are consecutive epochs of sleep.

    <uri>/nights.parquet    first int64, epochs int32, night int32, index int32; one row for each run

A run is ``epochs`` rows of one shard with the ids ``first``, ``first + 1``, ...: epochs ``index``, ``index + 1``, ...
of the night with this index among the corpus's recordings. A gap in a night, and the end of a shard, end a run.

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.errors import CorpusError
from rayssl.schema import Config

PATH = "nights.parquet"
_SCHEMA = pa.schema(
    [
        pa.field("first", pa.int64(), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("epochs", "night", "index")),
    ]
)


class NightRun(Config):
    """Consecutive epochs in a shard: ``epochs`` rows from row ``row``, epoch ``index`` of the night and later ones."""

    row: int
    epochs: int
    index: int


class NightsEntry(Config):
    """The entry of a corpus of nights in its manifest.

    ``path`` and ``sha256``: the file of runs. ``nights``: their number. ``stages``: the number of epochs of each stage,
    by name, and of ``unscored`` ones. ``dropped``: the number of epochs that are missing, by reason.
    """

    path: str
    sha256: str
    nights: int
    stages: dict[str, int]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Runs:
    """The runs of a corpus, in order of ``first``; int64 ``[n]`` each."""

    first: np.ndarray
    epochs: np.ndarray
    night: np.ndarray
    index: np.ndarray


def write(uri: str, runs: Sequence[tuple[int, int, int, int]]) -> tuple[str, str]:
    """Writes (first, epochs, night, index) of each run, in order. Returns the path below ``uri``, and the SHA-256."""
    columns = zip(*runs, strict=True)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    storage.write_bytes(storage.join(uri, PATH), data)
    return PATH, hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=4)
def read(place: str, sha256: str) -> Runs:
    """The runs in the file at ``place``. Raises `CorpusError` if its hash is not ``sha256``, as the manifest says."""
    data = storage.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorpusError(f"{place}: not the file that the manifest lists (sha256 differs); run rayssl prepare again")
    table = pq.ParquetFile(io.BytesIO(data)).read()
    return Runs(*(table[name].to_numpy().astype(np.int64) for name in _SCHEMA.names))

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
from rayssl.data import listed
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

    ``path`` and ``sha256``: the file of runs. ``nights`` and ``subjects``: their numbers. ``stages``: the number of
    epochs of each stage, by name, and of ``unscored`` ones. ``dropped``: the number of epochs that are missing, by
    reason.
    """

    path: str
    sha256: str
    nights: int
    subjects: int
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
    return _parse(listed.read(place, sha256))


def problems(uri: str, entry: NightsEntry, parts: Sequence[pa.Table], stages: Sequence[str]) -> list[str]:
    """Compares the file of runs and ``entry`` with the rows. One line for each problem; empty if there is none.

    ``parts``: the columns name, speaker, recording and label of each shard, in order. ``stages``: the names of the
    labels, and of the label -1 at the end.
    """
    place = storage.join(uri, entry.path)
    known, found = listed.examine(place, entry.sha256, _parse, "runs")
    if known is None:
        return found
    expected, mixed = _runs_of(parts)
    if mixed:
        found.append(f"{uri}: the epochs of '{mixed}' have several subjects or recordings")
    rows = np.stack([known.first, known.epochs, known.night, known.index], axis=1)
    if not np.array_equal(rows, np.array(expected, np.int64).reshape(-1, 4)):
        found.append(f"{place}: its runs are not those of the epochs in the shards")
    labels = np.concatenate([part["label"].to_numpy() for part in parts])
    counts = np.bincount(np.where(labels < 0, len(stages) - 1, labels), minlength=len(stages)).tolist()
    if dict(zip(stages, counts, strict=True)) != entry.stages:
        found.append(f"{uri}: the number of epochs of a stage differs from the manifest")
    distinct = [len(set().union(*(part[key].to_pylist() for part in parts))) for key in ("recording", "speaker")]
    if distinct != [entry.nights, entry.subjects]:
        said = f"the manifest says {entry.nights} of {entry.subjects}"
        found.append(f"{uri}: {distinct[0]} nights of {distinct[1]} subjects, {said}")
    return found


def _runs_of(parts: Sequence[pa.Table]) -> tuple[list[tuple[int, int, int, int]], str]:
    """The runs (first, epochs, night, index) of the rows by their names, and the first night of several subjects."""
    found, facts, mixed, row = list[tuple[int, int, int, int]](), dict[str, tuple[int, int]](), "", 0
    for part in parts:
        before = ("", 0)
        columns = (part[key].to_pylist() for key in ("name", "speaker", "recording"))
        for name, speaker, recording in zip(*columns, strict=True):
            night, _, text = name.rpartition("/")
            index = int(text) if text.isdecimal() else -1
            if facts.setdefault(night, (speaker, recording)) != (speaker, recording):
                mixed = mixed or night
            if before == (night, index - 1):
                found[-1] = (found[-1][0], found[-1][1] + 1, *found[-1][2:])
            else:
                found.append((row, 1, recording, index))
            before, row = (night, index), row + 1
    return found, mixed


def _parse(data: bytes) -> Runs:
    table = listed.parquet(data)
    if not table.schema.equals(_SCHEMA):
        raise CorpusError("its columns are not those of runs")
    return Runs(*(table[name].to_numpy().astype(np.int64) for name in _SCHEMA.names))

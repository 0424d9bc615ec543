"""A prepared corpus on storage: Parquet shards of encoded audio, and a manifest with their counts and hashes.

    <uri>/manifest.json            counts, hashes, settings; written last, so it exists only if the corpus is complete
    <uri>/shards/00000.parquet ... name, audio, samples, speaker, recording, label
    <uri>/labels.parquet           the names of speakers, recordings and labels by their indices
    <uri>/rejects.parquet          the utterances that were left out, and why
    <uri>/splits/<name>.parquet    which utterances are labelled and which unlabelled, see `rayssl.data.splits`

The id of an utterance is its position: the shard's `first_id` plus its row. So the ids are 0..N-1 without gaps, and a
table with one row per utterance needs no look-up. Index -1 means "unknown" for speaker, recording and label. To read a
corpus::

    manifest = read_manifest("s3://bucket/corpus")
    for shard in manifest.shards:
        table = read_shard("s3://bucket/corpus", shard, ["name", "speaker"])
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from rayssl import storage
from rayssl.data import decode, listed
from rayssl.data.mel import EPOCH_S, MelConfig
from rayssl.data.nights.runs import NightsEntry
from rayssl.data.segments.entry import SegmentsEntry
from rayssl.data.splits import Split
from rayssl.errors import CorpusError, StorageError
from rayssl.schema import Config

VERSION = 1
GROUP_ROWS = 32  # utterances in a row group of a shard: the least that is read at once
MANIFEST, LABELS, REJECTS, SHARDS = "manifest.json", "labels.parquet", "rejects.parquet", "shards"
KINDS: tuple[str, ...] = ("speaker", "recording", "label")
CHECKSUMS = b"rayssl.page_checksums"  # a key of the footer of a shard whose pages have checksums

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("audio", pa.binary(), nullable=False),
        pa.field("samples", pa.int32(), nullable=False),
        *(pa.field(kind, pa.int32(), nullable=False) for kind in KINDS),
    ]
)
LABELS_SCHEMA = pa.schema([("kind", pa.string()), ("index", pa.int32()), ("name", pa.string())])
_REJECTS_SCHEMA = pa.schema([("name", pa.string()), ("source", pa.string()), ("reason", pa.string())])

_SHARD_PATH = re.compile(r"shards/\w[\w.-]*\.parquet")


class Shard(Config):
    """One Parquet file: its ``path`` relative to the corpus, rows, the id of row 0, seconds of audio, size and hash."""

    path: str
    rows: int = Field(ge=1)
    first_id: int = Field(ge=0)
    seconds: float = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(Config):
    """What a corpus contains.

    ``rows`` counts utterances; ``speakers``, ``recordings`` and ``labels`` count names; ``rejected`` counts rejects.
    ``rate`` is in Hz. ``resampler`` is what source audio at other rates was resampled with: an older manifest does not
    say it, and its corpus was made with SciPy. ``group_rows`` is the number of utterances in a row group of a shard
    (its last group may have fewer); 0 if each shard is one group, as in corpora from before there were groups.
    ``fingerprint`` identifies the content of the shards. ``splits``, by name, say what utterances are used for; the
    fingerprint does not depend on them. ``nights``: set if the utterances are epochs of sleep of 30 seconds, in
    order. ``mel``: how their pictures were made, if the format is ``mel``. ``segments``: set if the utterances are
    segments of recordings.
    """

    version: int
    rate: int = decode.RATE
    resampler: str = "scipy.signal.resample_poly"
    format: decode.Format
    rows: int
    seconds: float
    speakers: int
    recordings: int
    labels: int
    rejected: int
    shards: list[Shard]
    settings: dict[str, Any]
    fingerprint: str
    group_rows: int = Field(default=0, ge=0)
    splits: dict[str, Split] = {}
    nights: NightsEntry | None = None
    mel: MelConfig | None = None
    segments: SegmentsEntry | None = None

    @property
    def epoch_shape(self) -> tuple[int, ...]:
        """The shape of an epoch of sleep: bands and frames of its picture, or its samples."""
        samples = EPOCH_S * self.rate
        return (samples,) if self.mel is None else (self.mel.n_mels, self.mel.frames(samples, self.rate))


class Reject(Config):
    """A source utterance that was left out: its ``name``, where it was read from (``source``), and the ``reason``."""

    name: str
    source: str
    reason: str


def read_manifest(uri: str) -> Manifest:
    """Reads the manifest of the corpus at ``uri``.

    Raises:
        CorpusError: there is no prepared corpus, its manifest is damaged, or it has another format version.
        StorageError: the manifest cannot be read for another reason.
    """
    try:
        text = storage.read_text(storage.join(uri, MANIFEST))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            raise CorpusError(f"{uri}: no prepared corpus there ({MANIFEST} is absent); run rayssl prepare") from None
        raise
    damaged = f"{uri}: {MANIFEST} is damaged"
    advice = "run rayssl prepare with --overwrite"
    try:
        tree = json.loads(text)
        version = tree["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorpusError(f"{damaged} (not a JSON manifest); {advice}") from None
    if version != VERSION:
        message = f"{uri}: the corpus has format version {version}, this rayssl reads {VERSION}"
        raise CorpusError(f"{message}; prepare it again with --overwrite")
    try:
        found = Manifest.model_validate(tree)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CorpusError(f"{damaged} (key '{key}'); {advice}") from None
    wrong = _contradiction(found)
    if wrong:
        raise CorpusError(f"{damaged} ({wrong}); {advice}")
    return found


def _contradiction(manifest: Manifest) -> str:
    """What in a manifest cannot be true; empty if nothing."""
    first = 0
    for number, shard in enumerate(manifest.shards):
        if not _SHARD_PATH.fullmatch(shard.path):
            return f"shards.{number}.path is not a file below shards/"
        if shard.first_id != first:
            return f"shards.{number}.first_id is {shard.first_id}, expected {first}"
        first += shard.rows
    if manifest.rows != first:
        return f"rows is {manifest.rows}, its shards have {first}"
    if not 0 < manifest.rate <= 768_000:
        return f"rate is {manifest.rate}"
    if min(manifest.speakers, manifest.recordings, manifest.labels, manifest.rejected) < 0 or not manifest.seconds >= 0:
        return "a count is negative"
    if manifest.fingerprint != fingerprint(manifest.shards):
        return "fingerprint does not fit the shards"
    return ""


def read_shard(uri: str, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads one shard of the corpus at ``uri``.

    Args:
        uri: the corpus.
        shard: one of ``manifest.shards``.
        columns: the columns to read, or None for all. Without ``audio`` far fewer bytes are read.

    Returns:
        A table with the rows in the order of ids, in the types of `SCHEMA`.

    Raises:
        CorpusError: the file is not Parquet, or has another number of rows than the manifest says.
        StorageError: the file cannot be read.
    """
    place = storage.join(uri, shard.path)
    with listed.damage(place, "run rayssl prepare --verify"):
        # with audio: the whole shard in one request; without: a few small columns by ranges, without the audio between
        audio = columns is None or "audio" in columns
        file = io.BytesIO(storage.read_bytes(place)) if audio else storage.open_read(place)
        read = listed.parquet_file(file)
        table = read.read(columns=list(columns) if columns is not None else None, use_threads=False)
    if table.num_rows != shard.rows:
        message = f"{place}: holds {table.num_rows} rows, the manifest says {shard.rows}; run rayssl prepare --verify"
        raise CorpusError(message)
    return table


def read_labels(uri: str) -> dict[str, list[str]]:
    """The names of each kind (``speaker``, ``recording``, ``label``), in the order of their indices.

    Raises `CorpusError` if the file is not Parquet, `StorageError` if it cannot be read.
    """
    place = storage.join(uri, LABELS)
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    with listed.damage(place, "run rayssl prepare again, with --overwrite"):
        table = listed.parquet(storage.read_bytes(place))
        for kind, name in zip(table["kind"].to_pylist(), table["name"].to_pylist(), strict=True):
            names[kind].append(name)
    return names


def read_rejects(uri: str) -> list[Reject]:
    """The utterances that were left out of the corpus at ``uri``, in order of name. Raises `CorpusError` for damage."""
    place = storage.join(uri, REJECTS)
    with listed.damage(place, "run rayssl prepare again, with --overwrite"):
        return [Reject(**row) for row in listed.parquet(storage.read_bytes(place)).to_pylist()]


def write_shard(
    uri: str,
    place: tuple[int, ...],
    columns: Mapping[str, Sequence[Any]],
    rate: int = decode.RATE,
    *,
    group_rows: int | None = None,
    seconds: float | None = None,
) -> Shard:
    """Writes one shard atomically. Equal columns give equal bytes.

    Args:
        uri: the corpus.
        place: the number of the shard, from 0; of a night its number, and that of the shard in the night. It becomes
            the name of the file.
        columns: one sequence for each field of `SCHEMA`, all of the same length.
        rate: the rate of the audio in Hz, to compute seconds.
        group_rows: the number of rows in a row group; `GROUP_ROWS` if it is not given.
        seconds: of audio, if the samples are not audio.

    Returns:
        The shard's entry for the manifest. Its `first_id` is 0; `number` sets it.
    """
    table = pa.table([_array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)
    table = table.replace_schema_metadata({CHECKSUMS: b"crc32"})
    data = _parquet(table, plain=["audio"], group_rows=group_rows or GROUP_ROWS)
    number, *part = place
    path = f"{SHARDS}/{number:05d}{''.join(f'-{k:03d}' for k in part)}.parquet"
    storage.write_bytes(storage.join(uri, path), data)
    return Shard(
        path=path,
        rows=table.num_rows,
        first_id=0,
        seconds=round(sum(columns["samples"]) / rate if seconds is None else seconds, 3),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def number(parts: Sequence[Shard]) -> list[Shard]:
    """``parts`` in order of path, each with its `first_id`, so that the ids have no gaps."""
    first = 0
    numbered = []
    for shard in sorted(parts, key=lambda shard: (len(shard.path), shard.path)):
        numbered.append(shard.model_copy(update={"first_id": first}))
        first += shard.rows
    return numbered


def write_labels(uri: str, names: Mapping[str, Sequence[str]]) -> None:
    """Writes the names of each kind (``speaker``, ``recording``, ``label``), in the order of their indices."""
    rows = [(kind, index, name) for kind in KINDS for index, name in enumerate(names.get(kind, ()))]
    storage.write_bytes(storage.join(uri, LABELS), _parquet(_rows_table(rows, LABELS_SCHEMA)))


def write_rejects(uri: str, rejects: Sequence[Reject]) -> None:
    """Writes the rejects in order of name, without duplicates."""
    rows = sorted({(reject.name, reject.source, reject.reason) for reject in rejects})
    storage.write_bytes(storage.join(uri, REJECTS), _parquet(_rows_table(rows, _REJECTS_SCHEMA)))


def write_manifest(
    uri: str,
    parts: Sequence[Shard],
    *,
    format: decode.Format,
    names: Mapping[str, Sized],
    rejected: int,
    settings: dict[str, Any],
    splits: Mapping[str, Split] | None = None,
    group_rows: int | None = None,
    nights: NightsEntry | None = None,
    mel: MelConfig | None = None,
    segments: SegmentsEntry | None = None,
) -> Manifest:
    """Writes the manifest, which completes the corpus, and returns it.

    Args:
        uri: the corpus.
        parts: its shards, in any order; they are numbered here.
        format: how the audio in the shards is encoded.
        names: the names of each kind, for counts.
        rejected: the number of rejects.
        settings: the settings that the corpus was made with, as plain values.
        splits: the splits, by name. Their files must exist already.
        group_rows: the number of rows in a row group of the shards; `GROUP_ROWS` if it is not given.
        nights: the entry of a corpus of nights; ``mel``: how its pictures were made, if ``format`` is ``mel``.
        segments: the entry of a corpus of segments.
    """
    shards = number(parts)
    manifest = Manifest(
        version=VERSION,
        resampler=decode.RESAMPLER,
        format=format,
        rows=sum(shard.rows for shard in shards),
        seconds=round(sum(shard.seconds for shard in shards), 3),
        speakers=len(names["speaker"]),
        recordings=len(names["recording"]),
        labels=len(names["label"]),
        rejected=rejected,
        shards=shards,
        settings=settings,
        fingerprint=fingerprint(shards),
        group_rows=group_rows or GROUP_ROWS,
        splits=dict(splits or {}),
        nights=nights,
        mel=mel,
        segments=segments,
    )
    _write(uri, manifest)
    return manifest


def replace_splits(uri: str, manifest: Manifest, splits: Mapping[str, Split]) -> Manifest:
    """Writes the manifest of a complete corpus again with the ``splits`` given here, and returns it."""
    replaced = manifest.model_copy(update={"splits": dict(splits)})
    _write(uri, replaced)
    return replaced


def fingerprint(shards: Sequence[Shard]) -> str:
    """A hash that identifies the content of a corpus: 16 hex digits, made from the hashes of the shards in order."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]


def _write(uri: str, manifest: Manifest) -> None:
    storage.write_text(storage.join(uri, MANIFEST), json.dumps(manifest.model_dump(), indent=1) + "\n")


def _rows_table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    return pa.table(
        {field.name: pa.array([row[k] for row in rows], field.type) for k, field in enumerate(schema)}, schema=schema
    )


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """``values`` as an Arrow array. Arrow's own builder takes twice the memory for binary values."""
    lengths = [len(value) for value in values] if kind == pa.binary() else []
    if not lengths or sum(lengths) >= 1 << 31:
        return pa.array(values, kind)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _parquet(table: pa.Table, plain: Sequence[str] = (), group_rows: int | None = None) -> bytes:
    """``table`` as Parquet, with one row group or groups of ``group_rows``.

    Columns in ``plain`` are not compressed: they hold encoded audio.
    """
    buffer = io.BytesIO()
    compression = {name: "none" if name in plain else "zstd" for name in table.column_names}
    dictionary = [name for name in table.column_names if name not in plain]
    pq.write_table(
        table,
        buffer,
        compression=compression,
        use_dictionary=dictionary,
        write_statistics=dictionary,
        row_group_size=group_rows or max(1, table.num_rows),
        write_page_checksum=True,
    )
    return buffer.getvalue()

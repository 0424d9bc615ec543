"""A prepared corpus on storage: Parquet shards of encoded audio, and a manifest that vouches for them.

    <uri>/manifest.json            counts, hashes, settings; written last, so that its presence means "complete"
    <uri>/shards/00000.parquet ... name, audio, samples, speaker, recording, label
    <uri>/labels.parquet           the names behind the speaker, recording and label indices
    <uri>/rejects.parquet          what was left out, and why
    <uri>/splits/<name>.parquet    which utterances are labelled and unlabelled ones, see `rayssl.data.splits`

An utterance's id is its place: the shard's `first_id` plus its row. Ids are therefore dense, 0..N-1, and tables of one
row per utterance need no look-up. Index -1 means "unknown" for speaker, recording and label.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from rayssl import storage
from rayssl.data import decode
from rayssl.data import splits as split_files
from rayssl.data.splits import Split
from rayssl.errors import CorpusError, StorageError
from rayssl.schema import Config

VERSION = 1
MANIFEST, LABELS, REJECTS, SHARDS = "manifest.json", "labels.parquet", "rejects.parquet", "shards"
KINDS: tuple[str, ...] = ("speaker", "recording", "label")

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("audio", pa.binary(), nullable=False),
        pa.field("samples", pa.int32(), nullable=False),
        *(pa.field(kind, pa.int32(), nullable=False) for kind in KINDS),
    ]
)
_LABELS_SCHEMA = pa.schema([("kind", pa.string()), ("index", pa.int32()), ("name", pa.string())])
_REJECTS_SCHEMA = pa.schema([("name", pa.string()), ("source", pa.string()), ("reason", pa.string())])


class Shard(Config):
    """One Parquet file: its ``path`` below the corpus, rows, the id of row 0, seconds of audio, size and hash."""

    path: str
    rows: int = Field(ge=1)
    first_id: int = Field(ge=0)
    seconds: float = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(Config):
    """What the corpus holds; ``speakers``, ``recordings``, ``labels`` count names; ``fingerprint`` is the content's.

    ``splits`` say what its utterances are used for, by name; the fingerprint does not depend on them.
    """

    version: int
    rate: int = decode.RATE
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
    splits: dict[str, Split] = {}


class Reject(Config):
    """A source utterance that was left out: its ``name``, where it was read from, and why."""

    name: str
    source: str
    reason: str


def read_manifest(uri: str) -> Manifest:
    """The manifest of the corpus at ``uri``; `CorpusError` when there is none, or it cannot be understood."""
    try:
        text = storage.read_text(storage.join(uri, MANIFEST))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            raise CorpusError(f"{uri}: no prepared corpus there ({MANIFEST} is absent); run rayssl prepare") from None
        raise
    try:
        tree = json.loads(text)
        version = tree["version"]
    except (ValueError, KeyError, TypeError):
        raise CorpusError(f"{uri}: {MANIFEST} is damaged (not a JSON manifest); run rayssl prepare again") from None
    if version != VERSION:
        message = (
            f"{uri}: the corpus has format version {version}, this rayssl reads {VERSION}; run rayssl prepare again"
        )
        raise CorpusError(message)
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CorpusError(f"{uri}: {MANIFEST} is damaged (key '{key}'); run rayssl prepare again") from None


def read_shard(uri: str, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of ``shard`` of the corpus at ``uri``, in id order; only ``columns`` where given."""
    place = storage.join(uri, shard.path)
    try:
        # whole shards in one request; a few narrow columns by ranges, without the audio between them
        file = io.BytesIO(storage.read_bytes(place)) if _wants_audio(columns) else storage.open_read(place)
        table = pq.ParquetFile(file).read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, EOFError) as error:
        raise CorpusError(f"{place}: not a Parquet file ({_first_line(error)}); run rayssl prepare --verify") from None
    if table.num_rows != shard.rows:
        message = f"{place}: holds {table.num_rows} rows, the manifest says {shard.rows}; run rayssl prepare --verify"
        raise CorpusError(message)
    return table


def read_labels(uri: str) -> dict[str, list[str]]:
    """For each kind (speaker, recording, label) the names, in the order of their indices."""
    place = storage.join(uri, LABELS)
    try:
        table = _read_parquet(io.BytesIO(storage.read_bytes(place)))
    except pa.ArrowException as error:
        raise CorpusError(f"{place}: not a Parquet file ({_first_line(error)}); run rayssl prepare again") from None
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, name in zip(table["kind"].to_pylist(), table["name"].to_pylist(), strict=True):
        names[kind].append(name)
    return names


def read_rejects(uri: str) -> list[Reject]:
    """What was left out of the corpus at ``uri``, in order of name."""
    table = _read_parquet(io.BytesIO(storage.read_bytes(storage.join(uri, REJECTS))))
    return [Reject(**row) for row in table.to_pylist()]


def write_shard(uri: str, index: int, columns: Mapping[str, Sequence[Any]], rate: int = decode.RATE) -> Shard:
    """Writes shard number ``index`` atomically; equal columns give equal bytes. Its `first_id` is 0 until `number`."""
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)
    data = _parquet(table, plain=["audio"])
    path = f"{SHARDS}/{index:05d}.parquet"
    storage.write_bytes(storage.join(uri, path), data)
    return Shard(
        path=path,
        rows=table.num_rows,
        first_id=0,
        seconds=round(sum(columns["samples"]) / rate, 3),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def number(parts: Sequence[Shard]) -> list[Shard]:
    """``parts`` in order of path, each with the `first_id` that makes the ids dense."""
    first = 0
    numbered = []
    for shard in sorted(parts, key=lambda shard: (len(shard.path), shard.path)):
        numbered.append(shard.model_copy(update={"first_id": first}))
        first += shard.rows
    return numbered


def write_labels(uri: str, names: Mapping[str, Sequence[str]]) -> None:
    """Writes the names of each kind in the order of their indices."""
    rows = [(kind, index, name) for kind in KINDS for index, name in enumerate(names.get(kind, ()))]
    storage.write_bytes(storage.join(uri, LABELS), _parquet(_rows_table(rows, _LABELS_SCHEMA)))


def write_rejects(uri: str, rejects: Sequence[Reject]) -> None:
    """Writes the rejects, in order of name."""
    rows = sorted({(reject.name, reject.source, reject.reason) for reject in rejects})
    storage.write_bytes(storage.join(uri, REJECTS), _parquet(_rows_table(rows, _REJECTS_SCHEMA)))


def write_manifest(
    uri: str,
    parts: Sequence[Shard],
    *,
    format: decode.Format,
    names: Mapping[str, Sequence[str]],
    rejected: int,
    settings: dict[str, Any],
    splits: Mapping[str, Split] | None = None,
) -> Manifest:
    """Writes what makes the corpus complete, and returns it. The files of ``splits`` must be there already."""
    shards = number(parts)
    manifest = Manifest(
        version=VERSION,
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
        splits=dict(splits or {}),
    )
    _write(uri, manifest)
    return manifest


def replace_splits(uri: str, manifest: Manifest, splits: Mapping[str, Split]) -> Manifest:
    """Writes the manifest of a complete corpus again, with other ``splits``, and returns it."""
    replaced = manifest.model_copy(update={"splits": dict(splits)})
    _write(uri, replaced)
    return replaced


def fingerprint(shards: Sequence[Shard]) -> str:
    """A short name for the content: a hash over the hashes of the shards, in order."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]


def verify(uri: str) -> list[str]:
    """What is wrong with the corpus at ``uri``, one line each, empty when sound. Reads every shard and all audio."""
    manifest = read_manifest(uri)
    problems = []
    if manifest.fingerprint != fingerprint(manifest.shards):
        problems.append(f"{storage.join(uri, MANIFEST)}: the fingerprint does not belong to the shards listed")
    named = read_labels(uri)
    known = {kind: len(names) for kind, names in named.items()}
    counted = {"speaker": manifest.speakers, "recording": manifest.recordings, "label": manifest.labels}
    problems += [
        f"{storage.join(uri, LABELS)}: {known[kind]} {kind} names, the manifest says {counted[kind]}"
        for kind in KINDS
        if known[kind] != counted[kind]
    ]
    first, names = 0, set[str]()
    for shard in manifest.shards:
        if shard.first_id != first:
            problems.append(f"{storage.join(uri, shard.path)}: first id is {shard.first_id}, expected {first}")
        first += shard.rows
        problems += _verify_shard(uri, shard, manifest.format, known, names)
    if first != manifest.rows:
        problems.append(f"{storage.join(uri, MANIFEST)}: rows is {manifest.rows}, the shards have {first}")
    if manifest.splits and not problems:  # compared with the labels in the shards, where those are sound
        columns = [read_shard(uri, shard, ["label"])["label"].to_numpy() for shard in manifest.shards]
        problems += split_files.problems(uri, manifest.splits, np.concatenate(columns), named["label"])
    return problems


def _write(uri: str, manifest: Manifest) -> None:
    storage.write_text(storage.join(uri, MANIFEST), json.dumps(manifest.model_dump(), indent=1) + "\n")


def _verify_shard(
    uri: str, shard: Shard, format: decode.Format, known: Mapping[str, int], names: set[str]
) -> list[str]:
    place = storage.join(uri, shard.path)
    try:
        data = storage.read_bytes(place)
    except StorageError as error:
        if error.errno not in storage.ABSENT:
            raise
        return [f"{place}: absent"]
    problems = []
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        problems.append(f"{place}: content differs from the manifest (sha256, {len(data)} of {shard.bytes} bytes)")
    try:
        table = _read_parquet(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        return [*problems, f"{place}: not a Parquet file ({_first_line(error)})"]
    if not table.schema.equals(SCHEMA):
        return [*problems, f"{place}: its columns are not those of a shard"]
    if table.num_rows != shard.rows:
        problems.append(f"{place}: {table.num_rows} rows, the manifest says {shard.rows}")
    for kind in KINDS:
        indices = table[kind].to_numpy()
        if len(indices) and (indices.min() < -1 or indices.max() >= known[kind]):
            problems.append(f"{place}: {kind} index out of range -1..{known[kind] - 1}")
    for name, audio, samples in zip(*(table[key].to_pylist() for key in ("name", "audio", "samples")), strict=True):
        problem = "the name is not unique" if name in names else _audio_problem(audio, samples, format)
        names.add(name)
        if problem:
            problems.append(f"{place}: '{name}': {problem}")
    return problems


def _audio_problem(audio: bytes, samples: int, format: decode.Format) -> str:
    try:
        found = len(decode.pcm(audio, format))
    except CorpusError:
        return "the audio does not decode"
    return "" if found == samples else f"{found} samples, the row says {samples}"


def _wants_audio(columns: Sequence[str] | None) -> bool:
    return columns is None or "audio" in columns


def _read_parquet(file: io.BytesIO) -> pa.Table:
    return pq.ParquetFile(file).read()


def _rows_table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    return pa.table(
        {field.name: pa.array([row[k] for row in rows], field.type) for k, field in enumerate(schema)}, schema=schema
    )


def _parquet(table: pa.Table, plain: Sequence[str] = ()) -> bytes:
    """``table`` as one Parquet row group; columns in ``plain`` hold compressed audio and are stored as they are."""
    buffer = io.BytesIO()
    compression = {name: "none" if name in plain else "zstd" for name in table.column_names}
    dictionary = [name for name in table.column_names if name not in plain]
    pq.write_table(
        table,
        buffer,
        compression=compression,
        use_dictionary=dictionary,
        write_statistics=dictionary,
        row_group_size=max(1, table.num_rows),
    )
    return buffer.getvalue()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120].rstrip(".")

"""Where audio comes from: folders, Parquet, WebDataset tars, or a generator. Listing is light, reading comes later.

A source lists `Reference`s (names and a locator, no audio), part by part; a task that holds some of them asks for
their audio. Names are unique in a corpus and are what trials refer to. Locators are relative to the source's URI, so
that they mean the same on every machine.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from rayssl import storage
from rayssl.data import synthetic
from rayssl.data.synthetic import SyntheticConfig
from rayssl.errors import CorpusError, StorageError
from rayssl.schema import Config

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
_FIELDS = ("speaker", "recording", "label")
_BATCH_ROWS = 64


class Reference(NamedTuple):
    """One source utterance. Unknown speaker, recording or label is None; ``locator`` is the source's own."""

    name: str
    speaker: str | None
    recording: str | None
    label: str | None
    locator: tuple[str | int, ...]

    def recording_name(self) -> str | None:
        """The recording as the corpus names it: recordings of different speakers are different recordings."""
        if self.recording is None:
            return None
        return self.recording if self.speaker is None else f"{self.speaker}/{self.recording}"


class FolderConfig(Config):
    """Audio files below ``uri``; the name of an utterance is its path below it.

    ``layout`` says what the leading folders of that path are, for example ``[speaker, recording]`` for VoxCeleb;
    ``csv`` (a URI) lists the files instead, in columns path and optionally speaker, recording, label. ``files`` is a
    pattern on the path.
    """

    name: Literal["folder"] = "folder"
    uri: str
    files: str = "*"
    layout: list[Literal["speaker", "recording", "label", "-"]] = []
    csv: str | None = None


class ParquetConfig(Config):
    """Rows of the Parquet files at ``uri`` (a file or a folder) whose path below it matches ``files``.

    ``id``, ``audio``, ``speaker``, ``recording``, ``label`` are column names; the last three may be null. Audio is a
    column of encoded bytes, or of structs with a field ``bytes``. ``where`` keeps the rows whose columns have one of
    the values listed, for example ``{session: [fold1, fold2]}``.
    """

    name: Literal["parquet"] = "parquet"
    uri: str
    files: str = "*.parquet"
    id: str = "id"
    audio: str = "audio"
    speaker: str | None = "speaker"
    recording: str | None = None
    label: str | None = None
    # left out of dumps where it says nothing: a corpus prepared before there was such a key stays the same corpus
    where: dict[str, list[str]] = Field(default={}, exclude_if=lambda value: not value)


class WebDatasetConfig(Config):
    """Tars below ``uri``: members ``key.wav`` (or another audio suffix) beside ``key.json``; the key is the name.

    ``speaker``, ``recording``, ``label`` are keys of the JSON. Listing reads through each tar once.
    """

    name: Literal["webdataset"] = "webdataset"
    uri: str
    files: str = "*.tar"
    speaker: str = "speaker"
    recording: str = "recording"
    label: str = "label"


SourceConfig = Annotated[FolderConfig | ParquetConfig | WebDatasetConfig | SyntheticConfig, Field(discriminator="name")]


class SourcePart(Config):
    """One of a source's `parts`, as a task is asked for it."""

    source: SourceConfig
    part: str


class Listing(Config):
    """What a task answers to a `SourcePart`."""

    references: list[Reference]


def describe(source: SourceConfig) -> str:
    """The source in a few words, for messages."""
    return "the synthetic source" if isinstance(source, SyntheticConfig) else source.uri


def resolved(source: SourceConfig) -> SourceConfig:
    """``source`` with absolute URIs: tasks may run in another working folder."""
    if isinstance(source, SyntheticConfig):
        return source
    changes = {"uri": storage.absolute(source.uri)}
    if isinstance(source, FolderConfig) and source.csv is not None:
        changes["csv"] = storage.absolute(source.csv)
    return source.model_copy(update=changes)


def parts(source: SourceConfig) -> list[str]:
    """What can be listed independently: URIs of containers, or one part for everything; `CorpusError` when none."""
    if isinstance(source, (SyntheticConfig, FolderConfig)):
        return [""]
    found = _files(source.uri, source.files, ())
    if not found:
        raise CorpusError(f"{source.uri}: no files match '{source.files}'; correct the source's uri or files")
    return found


def list_part(source: SourceConfig, part: str) -> list[Reference]:
    """The utterances of one of `parts`, without their audio."""
    if isinstance(source, FolderConfig):
        return _list_csv(source, source.csv) if source.csv is not None else _list_folder(source)
    if isinstance(source, ParquetConfig):
        return list(_list_parquet(source, part))
    if isinstance(source, WebDatasetConfig):
        return _list_tar(source, part)
    return [
        Reference(f"s{s:05d}/r{r:02d}/u{u:03d}", f"s{s:05d}", f"r{r:02d}", None, (s, r, u))
        for s, r, u in synthetic.utterance_names(source)
    ]


def read(source: SourceConfig, references: Sequence[Reference]) -> Iterator[tuple[int, bytes | np.ndarray]]:
    """The audio of each reference with its position, in any order: encoded bytes, or float32 ``[T]`` at 16 kHz.

    A file that is listed but absent gives no bytes, so that it becomes a reject; failing storage is a `StorageError`.
    """
    if isinstance(source, SyntheticConfig):
        for position, reference in enumerate(references):
            speaker, recording, utterance = (int(number) for number in reference.locator)
            yield position, synthetic.speak(source, speaker, recording, utterance)
    elif isinstance(source, ParquetConfig):
        yield from _read_parquet(source, references)
    elif isinstance(source, WebDatasetConfig):
        for position, reference in enumerate(references):
            tar, offset, size = reference.locator
            yield position, storage.read_range(_place(source.uri, str(tar)), int(offset), int(size))
    else:
        for position, reference in enumerate(references):
            yield position, _read_file(storage.join(source.uri, str(reference.locator[0])))


def place(source: SourceConfig, reference: Reference) -> str:
    """Where the utterance was read from, for the list of rejects."""
    if isinstance(source, SyntheticConfig):
        return describe(source)
    return _place(source.uri, str(reference.locator[0]))


def _reference(name: str, known: Mapping[str, Any], locator: tuple[str | int, ...]) -> Reference:
    speaker, recording, label = (_text(known.get(field)) for field in _FIELDS)
    return Reference(name, speaker, recording, label, locator)


def _files(uri: str, pattern: str, suffixes: Sequence[str]) -> list[str]:
    """Paths below ``uri`` that match, sorted; a single empty path when ``uri`` is itself a file."""
    found = [name[len(uri.rstrip("/")) + 1 :] for name in storage.list_files(uri, suffixes)]
    if not found and storage.is_file(uri):
        return [""]
    return [name for name in found if fnmatch(name, pattern)]


def _place(uri: str, path: str) -> str:
    return storage.join(uri, path) if path else uri


def _list_folder(source: FolderConfig) -> list[Reference]:
    if not storage.exists(source.uri):
        raise CorpusError(f"{source.uri}: no such folder; correct the source's uri")
    references = []
    for path in filter(None, _files(source.uri, source.files, AUDIO_SUFFIXES)):
        folders = path.split("/")[:-1]
        if len(folders) < len(source.layout):
            wanted = "/".join(source.layout)
            raise CorpusError(f"{_place(source.uri, path)}: not below folders {wanted} as the source's layout says")
        known: dict[str, str] = dict(zip(source.layout, folders, strict=False))
        references.append(_reference(path, known, (path,)))
    return references


def _list_csv(source: FolderConfig, place: str) -> list[Reference]:
    rows = csv.DictReader(io.StringIO(storage.read_text(place)))
    columns = rows.fieldnames or []
    if "path" not in columns:
        raise CorpusError(f"{place}: line 1: no column 'path' (found: {', '.join(columns) or 'nothing'})")
    references = []
    for row in rows:
        path = (row["path"] or "").strip()
        if not path or None in row:
            raise CorpusError(f"{place}: line {rows.line_num}: expected {len(columns)} columns with a path")
        if fnmatch(path, source.files):
            known = {field: (row.get(field) or "").strip() for field in _FIELDS}
            references.append(_reference(path, known, (path,)))
    return references


def _read_file(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except StorageError as error:
        if error.errno in storage.ABSENT:
            return b""
        raise


def _open_parquet(place: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_read(place))
    except pa.ArrowException:
        raise CorpusError(f"{place}: not a Parquet file; correct the source's uri or files") from None


def _list_parquet(source: ParquetConfig, path: str) -> Iterator[Reference]:
    place = _place(source.uri, path)
    file = _open_parquet(place)
    wanted = {"id": source.id} | {f: getattr(source, f) for f in _FIELDS if getattr(source, f) is not None}
    asked = {f"where.{column}": column for column in source.where}
    for key, column in {**wanted, "audio": source.audio, **asked}.items():
        if column not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise CorpusError(f"{place}: no column '{column}' (the source's {key}); its columns are {columns}")
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=sorted({*wanted.values(), *source.where}))
        values = {key: table[column].to_pylist() for key, column in wanted.items()}
        kept = np.ones(table.num_rows, bool)
        for column, listed in source.where.items():
            kept &= np.array([_text(value) in listed for value in table[column].to_pylist()], bool)
        for row in np.flatnonzero(kept).tolist():
            known = {field: values[field][row] for field in _FIELDS if field in values}
            yield _reference(_text(values["id"][row]) or f"{path}#{group}.{row}", known, (path, group, row))


def _read_parquet(source: ParquetConfig, references: Sequence[Reference]) -> Iterator[tuple[int, bytes]]:
    """Each row group that holds a wanted row is read once, its audio column only."""
    wanted: dict[tuple[str, int], dict[int, int]] = {}
    for position, reference in enumerate(references):
        path, group, row = reference.locator
        wanted.setdefault((str(path), int(group)), {})[int(row)] = position
    opened, file = "", None
    for (path, group), rows in sorted(wanted.items()):
        if file is None or path != opened:
            opened, file = path, _open_parquet(_place(source.uri, path))
        first = 0
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[source.audio]):
            column = batch.column(batch.schema.names[0] if source.audio not in batch.schema.names else source.audio)
            for row in range(batch.num_rows):
                if first + row in rows:
                    value = column[row].as_py()
                    yield rows[first + row], (value.get("bytes") if isinstance(value, dict) else value) or b""
            first += batch.num_rows


def _list_tar(source: WebDatasetConfig, part: str) -> list[Reference]:
    place = _place(source.uri, part)
    audio: dict[str, tuple[str | int, ...]] = {}
    facts: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=storage.open_read(place), mode="r:") as tar:
            for member in tar:
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                key = folder + slash + base.partition(".")[0]
                suffix = "." + base.rpartition(".")[2].lower()
                if member.isfile() and suffix in AUDIO_SUFFIXES:
                    audio[key] = (part, member.offset_data, member.size)
                elif member.isfile() and suffix == ".json":
                    facts[key] = _json_object(tar.extractfile(member), f"{place}: {member.name}")
    except tarfile.TarError as error:
        raise CorpusError(f"{place}: not a whole, uncompressed tar ({error}); correct the source's uri") from None
    references = []
    for key, locator in audio.items():
        given = facts.get(key, {})
        references.append(_reference(key, {field: given.get(getattr(source, field)) for field in _FIELDS}, locator))
    return references


def _json_object(file: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: not a JSON object")
    return value


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)

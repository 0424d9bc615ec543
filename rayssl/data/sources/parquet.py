"""Rows of Parquet files that have encoded audio in a column."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from rayssl import storage
from rayssl.data import listed
from rayssl.data.errors import DecodeError
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import FACTS, ContainerSource, FilesConfig, join, reference, text
from rayssl.errors import CorpusError

_BATCH_ROWS = 64
_ADVICE = "get the file again, or leave it out with the source's files"


class ParquetConfig(FilesConfig):
    """Rows of Parquet files.

    Data sets of Hugging Face are read as they are, also from ``hf://datasets/OWNER/NAME/FOLDER``: a row needs no id,
    and a column of classes gives their names. Rows with a path and no bytes are rejects.
    """

    name: Literal["parquet"] = "parquet"
    """Rows of Parquet files with encoded audio, also data sets of Hugging Face."""
    files: str = "*.parquet"
    """If ``uri`` is a folder: only files are read whose path matches this pattern with ``*``."""
    id: str | None = "id"
    """The column with the utterance's name; null names an utterance by the place of its row."""
    audio: str = "audio"
    """The column with the audio: encoded bytes, or structs with a field ``bytes``."""
    speaker: str | None = "speaker"
    """The column with the speaker; null if there is none."""
    recording: str | None = None
    """The column with the recording that an utterance comes from; null if there is none."""
    label: str | None = None
    """The column with the label of the class; null if there is none."""
    # not dumped if empty, so that a corpus prepared before this key existed stays the same corpus
    where: dict[str, list[str]] = Field(default={}, exclude_if=lambda value: not value)
    """Keeps a row only if its columns have one of the listed values, for example ``{session: [fold1, fold2]}``; empty
    keeps all.
    """


class Parquet(ContainerSource):
    """Each row is an utterance."""

    Config = ParquetConfig
    config: ParquetConfig

    def list_part(self, part: str) -> Iterator[Reference]:
        """The rows of one file. The audio column is not read. Raises `CorpusError` if a column does not exist."""
        place = join(self.config.uri, part)
        with _open(place) as file:
            wanted = self._checked(place, file.schema_arrow)
            classes = _classes(file.schema_arrow)
            columns = sorted({*wanted.values(), *self.config.where})
            for group in range(file.num_row_groups):
                with listed.damage(place, _ADVICE):
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    values = {
                        key: _named(table[column].to_pylist(), classes.get(column)) for key, column in wanted.items()
                    }
                for row in self._kept(table, file.metadata.row_group(group).num_rows):
                    known = {fact: values[fact][row] for fact in FACTS if fact in values}
                    name = text(values["id"][row]) if "id" in values else None
                    yield reference(name or f"{part}#{group}.{row}", known, (part, group, row))

    def read(self, reference: Reference) -> bytes:
        """The audio of one row. Raises `DecodeError` if it holds only a path."""
        audio = next(audio for _, audio in self.read_many([reference]))
        if isinstance(audio, DecodeError):
            raise audio
        return audio

    def read_many(self, references: Sequence[Reference]) -> Iterator[tuple[int, bytes | DecodeError]]:
        """Reads only the audio column, and each needed row group once."""
        wanted: dict[str, dict[int, dict[int, int]]] = {}
        for position, one in enumerate(references):
            path, group, row = one.locator
            wanted.setdefault(str(path), {}).setdefault(int(group), {})[int(row)] = position
        for path, groups in sorted(wanted.items()):
            with _open(join(self.config.uri, path)) as file:
                for group, rows in sorted(groups.items()):
                    yield from self._rows(path, file, group, rows)

    def _rows(
        self, path: str, file: pq.ParquetFile, group: int, rows: dict[int, int]
    ) -> Iterator[tuple[int, bytes | DecodeError]]:
        """The audio of some rows of a row group. ``rows``: the position of each among the references."""
        first, name = 0, self.config.audio
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name], use_threads=False)
        while True:
            with listed.damage(join(self.config.uri, path), _ADVICE):
                batch = next(batches, None)
            if batch is None:
                return
            column = batch.column(name if name in batch.schema.names else batch.schema.names[0])
            for row in range(batch.num_rows):
                if first + row in rows:
                    yield rows[first + row], _bytes(column[row].as_py())
            first += batch.num_rows

    def _checked(self, place: str, schema: pa.Schema) -> dict[str, str]:
        """The columns of the name and the facts. Raises `CorpusError` for a missing column."""
        config = self.config
        given = {key: getattr(config, key) for key in ("id", *FACTS)}
        if "id" not in config.model_fields_set and config.id not in schema.names:
            given["id"] = None
        wanted = {key: column for key, column in given.items() if column is not None}
        asked = {f"where.{column}": column for column in config.where}
        for key, column in {**wanted, "audio": config.audio, **asked}.items():
            if column not in schema.names:
                columns = ", ".join(schema.names)
                hint = "" if key == "audio" or "." in key else f"; source.{key}: null leaves it out"
                what = f"no column '{column}' (the source's {key}); its columns are {columns}"
                raise CorpusError(f"{place}: {what}{hint}")
        kind = schema.field(config.audio).type
        if not _holds_bytes(kind):
            how = "it must hold encoded bytes, or structs with a field 'bytes'"
            raise CorpusError(f"{place}: the column '{config.audio}' (the source's audio) is {kind}; {how}")
        return wanted

    def _kept(self, table: pa.Table, count: int) -> list[int]:
        """The rows that ``where`` keeps, of ``count``."""
        kept = np.ones(count, bool)
        for column, values in self.config.where.items():
            kept &= np.array([text(value) in values for value in table[column].to_pylist()], bool)
        rows: list[int] = np.flatnonzero(kept).tolist()
        return rows


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that has some, as Hugging Face writes them beside the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: list(map(str, names)) for name, names in found.items() if isinstance(names, list)}


def _named(values: list[Any], classes: list[str] | None) -> list[Any]:
    """Numbers of classes as their names; -1 is no class."""
    if classes is None:
        return values
    return [classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None for value in values]


def _bytes(value: Any) -> bytes | DecodeError:
    """The audio in a row; nothing is an empty file."""
    if not isinstance(value, dict):
        return value or b""
    if not value.get("bytes") and value.get("path"):
        what = "store the audio in the Parquet files, or list the files by the source folder with csv"
        return DecodeError(f"no bytes in the row, only the path '{value['path']}'; {what}")
    return value.get("bytes") or b""


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _open(place: str) -> pq.ParquetFile:
    # to be closed, and read without threads: one that still reads a Python file at the end of a process aborts it
    with listed.damage(place, "correct the source's uri or files"):
        return listed.parquet_file(storage.open_read(place))

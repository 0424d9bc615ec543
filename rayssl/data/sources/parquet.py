"""Rows of Parquet files that have encoded audio in a column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from rayssl import storage
from rayssl.data import listed
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import FACTS, ContainerSource, FilesConfig, join, reference, text
from rayssl.errors import CorpusError

_BATCH_ROWS = 64
_ADVICE = "get the file again, or leave it out with the source's files"


class ParquetConfig(FilesConfig):
    """Rows of Parquet files. ``uri`` is a file, or a folder: then the paths of its files must match ``files``.

    ``id``, ``audio``, ``speaker``, ``recording`` and ``label`` are names of columns; the last three may be null. The
    audio column holds encoded bytes, or structs with a field ``bytes``. ``where`` keeps a row only if its columns have
    one of the listed values, for example ``{session: [fold1, fold2]}``.
    """

    name: Literal["parquet"] = "parquet"
    files: str = "*.parquet"
    id: str = "id"
    audio: str = "audio"
    speaker: str | None = "speaker"
    recording: str | None = None
    label: str | None = None
    # not dumped if empty, so that a corpus prepared before this key existed stays the same corpus
    where: dict[str, list[str]] = Field(default={}, exclude_if=lambda value: not value)


class Parquet(ContainerSource):
    """Each row is an utterance."""

    Config = ParquetConfig
    config: ParquetConfig

    def list_part(self, part: str) -> Iterator[Reference]:
        """The rows of one file. The audio column is not read. Raises `CorpusError` if a column does not exist."""
        file, wanted = self._checked(part)
        for group in range(file.num_row_groups):
            with listed.damage(join(self.config.uri, part), _ADVICE):
                table = file.read_row_group(group, columns=sorted({*wanted.values(), *self.config.where}))
                values = {key: table[column].to_pylist() for key, column in wanted.items()}
            for row in self._kept(table):
                known = {fact: values[fact][row] for fact in FACTS if fact in values}
                yield reference(text(values["id"][row]) or f"{part}#{group}.{row}", known, (part, group, row))

    def read(self, reference: Reference) -> bytes:
        """The audio of one row."""
        return next(audio for _, audio in self.read_many([reference]))

    def read_many(self, references: Sequence[Reference]) -> Iterator[tuple[int, bytes]]:
        """Reads only the audio column, and each needed row group once."""
        wanted: dict[tuple[str, int], dict[int, int]] = {}
        for position, one in enumerate(references):
            path, group, row = one.locator
            wanted.setdefault((str(path), int(group)), {})[int(row)] = position
        opened, file = "", None
        name = self.config.audio
        for (path, group), rows in sorted(wanted.items()):
            if file is None or path != opened:
                opened, file = path, _open(join(self.config.uri, path))
            first = 0
            batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name])
            while True:
                with listed.damage(join(self.config.uri, path), _ADVICE):
                    batch = next(batches, None)
                if batch is None:
                    break
                column = batch.column(name if name in batch.schema.names else batch.schema.names[0])
                for row in range(batch.num_rows):
                    if first + row in rows:
                        value = column[row].as_py()
                        yield rows[first + row], (value.get("bytes") if isinstance(value, dict) else value) or b""
                first += batch.num_rows

    def _checked(self, part: str) -> tuple[pq.ParquetFile, dict[str, str]]:
        """The opened file, and the columns of the name and the facts. Raises `CorpusError` for a missing column."""
        config, place = self.config, join(self.config.uri, part)
        file = _open(place)
        wanted = {"id": config.id} | {
            fact: getattr(config, fact) for fact in FACTS if getattr(config, fact) is not None
        }
        asked = {f"where.{column}": column for column in config.where}
        for key, column in {**wanted, "audio": config.audio, **asked}.items():
            if column not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                raise CorpusError(f"{place}: no column '{column}' (the source's {key}); its columns are {columns}")
        kind = file.schema_arrow.field(config.audio).type
        if not _holds_bytes(kind):
            how = "it must hold encoded bytes, or structs with a field 'bytes'"
            raise CorpusError(f"{place}: the column '{config.audio}' (the source's audio) is {kind}; {how}")
        return file, wanted

    def _kept(self, table: pa.Table) -> list[int]:
        """The rows that ``where`` keeps."""
        kept = np.ones(table.num_rows, bool)
        for column, values in self.config.where.items():
            kept &= np.array([text(value) in values for value in table[column].to_pylist()], bool)
        rows: list[int] = np.flatnonzero(kept).tolist()
        return rows


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _open(place: str) -> pq.ParquetFile:
    with listed.damage(place, "correct the source's uri or files"):
        return pq.ParquetFile(storage.open_read(place), page_checksum_verification=True)

"""Audio files in folders, whose names or a CSV file say who speaks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import ClassVar, Literal

from rayssl import storage
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import AUDIO_SUFFIXES, FACTS, FilesConfig, FilesSource, join, matching, reference
from rayssl.errors import CorpusError, StorageError


class FolderConfig(FilesConfig):
    """Audio files below ``uri``; the name of an utterance is its path below it.

    ``layout`` says what the leading folders of that path are, for example ``[speaker, recording]`` for VoxCeleb;
    ``csv`` (a URI) lists the files instead, in columns path and optionally speaker, recording, label. ``files`` is a
    pattern on the path.
    """

    name: Literal["folder"] = "folder"
    layout: list[Literal["speaker", "recording", "label", "-"]] = []
    csv: str | None = None

    uris: ClassVar[tuple[str, ...]] = ("uri", "csv")


class Folder(FilesSource):
    """A file is an utterance."""

    Config = FolderConfig
    config: FolderConfig

    def list(self) -> Iterator[Reference]:
        """In order of the path, or of the lines of the CSV file; `CorpusError` where names or lines do not fit."""
        if self.config.csv is not None:
            return self._listed(self.config.csv)
        return self._found()

    def read(self, reference: Reference) -> bytes:
        """The file. One that is listed but absent gives no bytes, so that it becomes a reject."""
        try:
            return storage.read_bytes(self.place(reference))
        except StorageError as error:
            if error.errno in storage.ABSENT:
                return b""
            raise

    def _found(self) -> Iterator[Reference]:
        uri, layout = self.config.uri, self.config.layout
        if not storage.exists(uri):
            raise CorpusError(f"{uri}: no such folder; correct the source's uri")
        for path in filter(None, matching(uri, self.config.files, AUDIO_SUFFIXES)):
            folders = path.split("/")[:-1]
            if len(folders) < len(layout):
                wanted = "/".join(layout)
                raise CorpusError(f"{join(uri, path)}: not below folders {wanted} as the source's layout says")
            known: dict[str, str] = dict(zip(layout, folders, strict=False))
            yield reference(path, known, (path,))

    def _listed(self, place: str) -> Iterator[Reference]:
        rows = csv.DictReader(io.StringIO(storage.read_text(place)))
        columns = rows.fieldnames or []
        if "path" not in columns:
            raise CorpusError(f"{place}: line 1: no column 'path' (found: {', '.join(columns) or 'nothing'})")
        for row in rows:
            path = (row["path"] or "").strip()
            if not path or None in row:
                raise CorpusError(f"{place}: line {rows.line_num}: expected {len(columns)} columns with a path")
            if fnmatch(path, self.config.files):
                yield reference(path, {fact: (row.get(fact) or "").strip() for fact in FACTS}, (path,))

"""Audio files in folders. The names of the folders, or a CSV file, say who speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import BinaryIO, ClassVar, Literal

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.data.sources import tables
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import (
    AUDIO_SUFFIXES,
    FACTS,
    FilesConfig,
    FilesSource,
    content,
    join,
    matching,
    opened,
    reference,
)
from rayssl.errors import CorpusError

_OTHERS: dict[tuple[str, str], Counter[str]] = {}  # what the last listing passed over, by URI and pattern


class FolderConfig(FilesConfig):
    """Audio files below ``uri``. The name of an utterance is its path relative to ``uri``."""

    name: Literal["folder"] = "folder"
    """Audio files in folders, or listed by a CSV file; speaker, recording or label from the path or the list."""
    layout: list[Literal["speaker", "recording", "label", "-"]] = []
    """What the first folders of a path are, in order: ``[speaker, recording]`` for VoxCeleb, ``[label]`` for a folder
    of each class; ``-`` passes over a folder.
    """
    csv: str | None = None
    """File or URI of a CSV or TSV file that lists the utterances instead, in the column path and the optional columns
    speaker, recording and label; see `rayssl.data.sources.tables`. Paths are relative to ``uri``.
    """
    # not dumped if empty, so that a corpus prepared before this key existed stays the same corpus
    columns: dict[Literal["path", "speaker", "recording", "label"], str] = Field(
        default={}, exclude_if=lambda value: not value
    )
    """The columns of the ``csv``, if they have other names: ``{path: file, speaker: client_id}``. What is not named
    here is then not read.
    """

    uris: ClassVar[tuple[str, ...]] = ("uri", "csv")

    @model_validator(mode="after")
    def _columns_fit(self) -> FolderConfig:
        if self.columns and (self.csv is None or "path" not in self.columns):
            raise ValueError("columns belong to csv, and must name the one of the path: {path: COLUMN, ...}")
        return self


class Folder(FilesSource):
    """Each file is an utterance."""

    Config = FolderConfig
    config: FolderConfig

    def list(self) -> Iterator[Reference]:
        """Utterances in order of the path, or of the lines of the CSV file.

        Raises `CorpusError` if a path does not have the folders of ``layout``, or a line of the CSV file is malformed.
        """
        if self.config.csv is not None:
            return self._listed(self.config.csv)
        return self._found()

    def passed_over(self) -> dict[str, int]:
        """Hidden files, and files with other suffixes or outside of ``files``."""
        return {} if self.config.csv is not None else dict(_OTHERS.get((self.config.uri, self.config.files), {}))

    def read(self, reference: Reference) -> bytes:
        """The content of the file. Raises `DecodeError` for a file that is listed but absent."""
        return content(self.place(reference), self._hint)

    def open(self, reference: Reference) -> BinaryIO:
        """The file, opened. Raises `DecodeError` as `read` does."""
        return opened(self.place(reference), self._hint)

    @property
    def _hint(self) -> str:
        return "" if self.config.csv is None else "; paths in the list are relative to the source's uri"

    def _found(self) -> Iterator[Reference]:
        uri, layout = self.config.uri, self.config.layout
        if not storage.exists(uri):
            raise CorpusError(f"{uri}: no such folder; correct the source's uri")
        others = _OTHERS[uri, self.config.files] = Counter[str]()
        for path in filter(None, matching(uri)):
            name = path.rpartition("/")[2]
            suffix = "." + name.rpartition(".")[2].lower() if "." in name.strip(".") else ""
            if name.startswith(".") or suffix not in AUDIO_SUFFIXES or not fnmatch(path, self.config.files):
                kind = "hidden" if name.startswith(".") else suffix or "without a suffix"
                others["not of 'files'" if suffix in AUDIO_SUFFIXES and kind != "hidden" else kind] += 1
                continue
            folders = path.split("/")[:-1]
            if len(folders) < len(layout):
                wanted = "/".join(layout)
                raise CorpusError(f"{join(uri, path)}: not below folders {wanted}, as the source's layout says")
            known: dict[str, str] = dict(zip(layout, folders, strict=False))
            yield reference(path, known, (path,))

    def _listed(self, place: str) -> Iterator[Reference]:
        named = self.config.columns
        first = named.get("path", "path")
        facts: dict[str, str] = {fact: fact for fact in FACTS}
        if named:
            facts = {fact: column for fact, column in named.items() if fact != "path"}
        for _, row in tables.rows(place, first, list(facts.values())):
            path = row[first]
            if fnmatch(path, self.config.files):
                yield reference(path, {fact: row.get(column, "") for fact, column in facts.items()}, (path,))

"""Shared by the sources that read files below a URI: matching paths, full URIs, and facts as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, BinaryIO

from rayssl import storage
from rayssl.data.errors import DecodeError
from rayssl.data.sources.base import Reference, Source, SourceConfig
from rayssl.errors import CorpusError, StorageError

#: What libsndfile reads.
SNDFILE_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc"),
    *(".au", ".caf", ".sph", ".w64", ".rf64"),
)
#: And what PyAV reads, see `rayssl.data.media`.
AUDIO_SUFFIXES = (*SNDFILE_SUFFIXES, ".m4a", ".mp4", ".aac", ".mka", ".webm")
FACTS = ("speaker", "recording", "label")


class FilesConfig(SourceConfig):
    """Files below a URI."""

    uri: str
    """Folder or URI below which the files are."""
    files: str = "*"
    """Only files are read whose path, relative to ``uri``, matches this pattern with ``*`` (``*`` also matches ``/``).
    """

    def describe(self) -> str:
        """The URI."""
        return self.uri


class FilesSource(Source):
    """Utterances in files below a URI. The first item of a locator is the file's path, relative to the URI."""

    config: FilesConfig

    def place(self, reference: Reference) -> str:
        """The file's URI."""
        return join(self.config.uri, str(reference.locator[0]))


class ContainerSource(FilesSource):
    """Files that hold many utterances each. Every file is a part."""

    def parts(self) -> Sequence[str]:
        """The paths of the files, relative to the URI; raises `CorpusError` if no file matches."""
        uri, pattern = self.config.uri, self.config.files
        found = matching(uri, pattern)
        if not found:
            raise CorpusError(f"{uri}: no files match '{pattern}'; correct the source's uri or files")
        return found

    def list(self) -> Iterator[Reference]:
        """The utterances of all parts."""
        for part in self.parts():
            yield from self.list_part(part)

    def list_part(self, part: str) -> Iterable[Reference]:
        """The utterances of one file."""
        raise NotImplementedError(f"{type(self).__name__}.list_part is not implemented")


def matching(uri: str, pattern: str = "*", suffixes: Sequence[str] = ()) -> list[str]:
    """The matching paths, relative to ``uri``, sorted. If ``uri`` is a file, the result is one empty path."""
    found = [name[len(uri.rstrip("/")) + 1 :] for name in storage.list_files(uri, suffixes)]
    if not found and storage.is_file(uri):
        return [""]
    return [name for name in found if fnmatch(name, pattern)]


def join(uri: str, path: str) -> str:
    """The URI of the file ``path`` below ``uri``; ``uri`` itself if ``path`` is empty."""
    return storage.join(uri, path) if path else uri


def content(place: str, hint: str = "") -> bytes:
    """The file at ``place``. Raises `DecodeError`, which ends in ``hint``, if it is absent."""
    try:
        return storage.read_bytes(place)
    except StorageError as error:
        raise _absent(error, hint) from None


def opened(place: str, hint: str = "") -> BinaryIO:
    """The file at ``place``, to be read in pieces. Raises `DecodeError`, which ends in ``hint``, if it is absent."""
    try:
        return storage.open_read(place)
    except StorageError as error:
        raise _absent(error, hint) from None


def _absent(error: StorageError, hint: str) -> DecodeError | StorageError:
    return DecodeError(f"no such file{hint}") if error.errno in storage.ABSENT else error


def reference(name: str, facts: Mapping[str, Any], locator: tuple[str | int, ...]) -> Reference:
    """The reference of an utterance. ``facts`` holds the known `FACTS`; its values may have any type."""
    speaker, recording, label = (text(facts.get(fact)) for fact in FACTS)
    return Reference(name, speaker, recording, label, locator)


def text(value: Any) -> str | None:
    """A fact as text; None if it is unknown, empty or not a number (what pandas writes for nothing)."""
    return None if value is None or value == "" or value != value else str(value)

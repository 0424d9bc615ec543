"""What sources have in common that read files below a URI: paths that match, places, facts as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from rayssl import storage
from rayssl.data.sources.base import Reference, Source, SourceConfig
from rayssl.errors import CorpusError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
FACTS = ("speaker", "recording", "label")


class FilesConfig(SourceConfig):
    """Files below ``uri`` whose path below it matches the pattern ``files``."""

    uri: str
    files: str = "*"

    def describe(self) -> str:
        """The URI."""
        return self.uri


class FilesSource(Source):
    """Utterances in files below a URI; a locator begins with a path below it."""

    config: FilesConfig

    def place(self, reference: Reference) -> str:
        """The file's URI."""
        return join(self.config.uri, str(reference.locator[0]))


class ContainerSource(FilesSource):
    """Files that hold many utterances each: every file is a part."""

    def parts(self) -> Sequence[str]:
        """Paths below the URI; `CorpusError` when there are none."""
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


def matching(uri: str, pattern: str, suffixes: Sequence[str] = ()) -> list[str]:
    """Paths below ``uri`` that match, sorted; a single empty path when ``uri`` is itself a file."""
    found = [name[len(uri.rstrip("/")) + 1 :] for name in storage.list_files(uri, suffixes)]
    if not found and storage.is_file(uri):
        return [""]
    return [name for name in found if fnmatch(name, pattern)]


def join(uri: str, path: str) -> str:
    """The URI of the file ``path`` below ``uri``, or ``uri`` where that is the file."""
    return storage.join(uri, path) if path else uri


def reference(name: str, facts: Mapping[str, Any], locator: tuple[str | int, ...]) -> Reference:
    """The reference of an utterance with those of the `FACTS` that are known, of any type."""
    speaker, recording, label = (text(facts.get(fact)) for fact in FACTS)
    return Reference(name, speaker, recording, label, locator)


def text(value: Any) -> str | None:
    """A fact as a name; None where nothing is known."""
    return None if value is None or value == "" else str(value)

"""Data folders of Kaldi: ``wav.scp``, with ``segments``, ``utt2spk`` and a list of labels beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from rayssl import storage
from rayssl.data.sources.base import Reference, SourceConfig
from rayssl.data.sources.excerpts import ExcerptSource
from rayssl.errors import CorpusError


class KaldiConfig(SourceConfig):
    """A data folder of Kaldi.

    With a file ``segments`` each of its segments is an utterance, and the file of ``wav.scp`` its recording; without it
    each entry of ``wav.scp`` is an utterance. ``utt2spk`` gives the speakers, if it is there. Paths in ``wav.scp`` may
    be URIs; others are relative to ``uri``. Commands (entries that end in ``|``) are refused: they would run on every
    node.
    """

    name: Literal["kaldi"] = "kaldi"
    """A data folder of Kaldi: wav.scp, with segments, utt2spk and a list of labels beside it."""
    uri: str
    """Folder or URI that holds ``wav.scp``."""
    label: str | None = None
    """The name of a file in the folder with a label for each utterance, for example ``utt2lang``; null for no labels.
    """

    uris: ClassVar[tuple[str, ...]] = ("uri",)

    def describe(self) -> str:
        """The URI."""
        return self.uri


class Kaldi(ExcerptSource):
    """Entries of ``wav.scp``, or segments."""

    Config = KaldiConfig
    config: KaldiConfig
    listed = "wav.scp"

    def list(self) -> Iterator[Reference]:
        """Utterances in the order of ``segments`` or ``wav.scp``. Raises `CorpusError` for a malformed line."""
        files = self._table("wav.scp")
        for number, (name, path) in enumerate(files.items(), 1):
            if path.endswith("|"):
                how = "convert the audio to files, and list those"
                raise CorpusError(f"{self._place('wav.scp')}: entry {number} ('{name}') is a command; {how}")
        speakers = self._table("utt2spk") if self._has("utt2spk") else {}
        labels = self._table(self.config.label) if self.config.label is not None else {}
        if not self._has("segments"):
            for name, path in files.items():
                yield Reference(name, speakers.get(name), None, labels.get(name), (path,))
            return
        for name, text in self._table("segments").items():
            words = text.split()
            if len(words) != 3 or not _is_range(words[1], words[2]):
                raise CorpusError(
                    f"{self._place('segments')}: '{name}': expected a recording, a start and an end in seconds"
                )
            if words[0] not in files:
                raise CorpusError(f"{self._place('segments')}: '{name}': wav.scp has no recording '{words[0]}'")
            yield Reference(name, speakers.get(name), words[0], labels.get(name), (files[words[0]], *words[1:]))

    @property
    def folder(self) -> str:  # type: ignore[override]
        """Where paths of ``wav.scp`` begin."""
        return self.config.uri

    def _place(self, name: str) -> str:
        return storage.join(self.config.uri, name)

    def _has(self, name: str) -> bool:
        return storage.exists(self._place(name))

    def _table(self, name: str) -> dict[str, str]:
        """The lines of a file: a key, white space, and the rest. A key may not come twice."""
        found: dict[str, str] = {}
        place = self._place(name)
        for number, line in enumerate(storage.read_text(place).split("\n"), 1):
            words = line.strip().split(None, 1)
            if not words:
                continue
            if len(words) < 2:
                raise CorpusError(f"{place}: line {number}: expected a key and a value, got '{line[:80]}'")
            if words[0] in found:
                raise CorpusError(f"{place}: line {number}: the key '{words[0]}' comes twice; make it one")
            found[words[0]] = words[1]
        return found


def _is_range(start: str, stop: str) -> bool:
    try:
        return 0 <= float(start) < float(stop) < float("inf")
    except ValueError:
        return False

"""Data folders of Kaldi: ``wav.scp``, with ``segments``, ``utt2spk`` and a list of labels beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from rayssl import storage
from rayssl.data import decode
from rayssl.data.errors import DecodeError
from rayssl.data.sources.base import Audio, Reference, Source, SourceConfig
from rayssl.errors import CorpusError, StorageError


class KaldiConfig(SourceConfig):
    """The data folder at ``uri``.

    With a file ``segments`` each of its segments is an utterance, and the file of ``wav.scp`` its recording; without it
    each entry of ``wav.scp`` is an utterance. ``utt2spk`` gives the speakers, if it is there. ``label``: the name of a
    file beside them with a label for each utterance, for example ``utt2lang``. Paths in ``wav.scp`` may be URIs; others
    are relative to ``uri``. Commands (entries that end in ``|``) are refused: they would run on every node.
    """

    name: Literal["kaldi"] = "kaldi"
    uri: str
    label: str | None = None

    uris: ClassVar[tuple[str, ...]] = ("uri",)

    def describe(self) -> str:
        """The URI."""
        return self.uri


class Kaldi(Source):
    """A locator is the path of the file, and the start and the end of a segment as they are written, if it is one."""

    Config = KaldiConfig
    config: KaldiConfig

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

    def read(self, reference: Reference) -> Audio:
        """The file of an utterance, or the samples of a segment."""
        path, *times = map(str, reference.locator)
        place = path if "://" in path or path.startswith("/") else storage.join(self.config.uri, path)
        if not times:
            return _content(place)
        start, stop = (round(float(time) * decode.RATE) for time in times)
        samples = _samples(place)
        # Kaldi lets a segment end half a second after the recording
        if start >= len(samples) or stop > len(samples) + decode.RATE // 2:
            whole = len(samples) / decode.RATE
            raise DecodeError(f"segment outside of its recording: {times[0]} to {times[1]} s of {whole:.3f} s")
        return samples[start:stop]

    def read_many(self, references: Sequence[Reference]) -> Iterator[tuple[int, Audio | DecodeError]]:
        """The segments of one recording one after the other, so that it is decoded once."""
        order = sorted(range(len(references)), key=lambda position: str(references[position].locator[0]))
        for position in order:
            try:
                audio: Audio | DecodeError = self.read(references[position])
            except DecodeError as error:
                audio = error
            yield position, audio
        _samples.cache_clear()

    def place(self, reference: Reference) -> str:
        """The file, and the segment's times."""
        path, *times = map(str, reference.locator)
        return f"{path} ({' to '.join(times)} s)" if times else path

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


def _content(place: str) -> bytes:
    try:
        return storage.read_bytes(place)
    except StorageError as error:
        if error.errno in storage.ABSENT:
            raise DecodeError("no such file; paths in wav.scp are relative to the source's uri") from None
        raise


@lru_cache(maxsize=1)
def _samples(place: str) -> np.ndarray:
    return decode.decode(_content(place), "mean")

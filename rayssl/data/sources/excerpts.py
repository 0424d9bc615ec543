"""Shared by the sources that list parts of recordings by their times, as Kaldi and Lhotse do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from rayssl import storage
from rayssl.data import recordings
from rayssl.data.decode import RATE
from rayssl.data.errors import DecodeError
from rayssl.data.samples import Channel
from rayssl.data.sources.base import Audio, Reference, Source
from rayssl.data.sources.files import content, opened

_LATE = RATE // 2  # samples by which a list may go beyond the end of a recording, as Kaldi allows


class ExcerptSource(Source):
    """Utterances are whole files, or parts of them.

    A locator is the path of the file, and of a part its start and its end in seconds, as they are written; perhaps then
    the number of the channel. Paths are URIs, or relative to ``folder``; ``listed`` names the list in messages.
    """

    folder: str
    listed: str

    def read(self, reference: Reference) -> Audio:
        """The file of an utterance, or the samples of a part."""
        ((_, audio),) = self.read_many([reference])
        if isinstance(audio, DecodeError):
            raise audio
        return audio

    def open(self, reference: Reference) -> BinaryIO | np.ndarray:
        """The file of an utterance, to be read in pieces, or the samples of a part."""
        if len(reference.locator) == 1:
            return opened(self._uri(reference), self._hint)
        audio = self.read(reference)
        assert isinstance(audio, np.ndarray)
        return audio

    def read_many(self, references: Sequence[Reference]) -> Iterator[tuple[int, Audio | DecodeError]]:
        """The parts of one recording together: it is decoded once, a block at a time."""
        parts: dict[tuple[str, Channel], list[int]] = {}
        for position, reference in enumerate(references):
            if len(reference.locator) == 1:
                try:
                    yield position, content(self._uri(reference), self._hint)
                except DecodeError as error:
                    yield position, error
            else:
                channel: Channel = int(reference.locator[3]) if len(reference.locator) > 3 else "mean"
                parts.setdefault((self._uri(reference), channel), []).append(position)
        for (uri, channel), positions in parts.items():
            bounds = [_bounds(references[position]) for position in positions]
            yield from self._parts(uri, channel, positions, bounds)

    def _parts(
        self, uri: str, channel: Channel, positions: Sequence[int], bounds: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, Audio | DecodeError]]:
        missing = dict.fromkeys(positions)
        try:
            with opened(uri, self._hint) as file:
                for place, samples in recordings.excerpts(file, bounds, channel):
                    position, (start, stop) = positions[place], bounds[place]
                    del missing[position]
                    if not len(samples) or len(samples) < stop - start - _LATE:
                        ends = (start + len(samples)) / RATE if len(samples) else 0.0
                        said = f"{start / RATE:g} to {stop / RATE:g} s" + (f", it ends at {ends:g} s" if ends else "")
                        yield position, DecodeError(f"segment outside of its recording: {said}")
                    else:
                        yield position, samples
        except DecodeError as error:
            yield from ((position, error) for position in missing)

    def place(self, reference: Reference) -> str:
        """The file, and the times of a part."""
        path, *times = map(str, reference.locator[:3])
        return f"{path} ({' to '.join(times)} s)" if times else path

    @property
    def _hint(self) -> str:
        return f"; paths in {self.listed} are relative to the source's uri"

    def _uri(self, reference: Reference) -> str:
        path = str(reference.locator[0])
        return path if "://" in path or path.startswith("/") else storage.join(self.folder, path)


def _bounds(reference: Reference) -> tuple[int, int]:
    """Start and stop of a part in samples."""
    start, stop = (round(float(time) * RATE) for time in reference.locator[1:3])
    return start, stop

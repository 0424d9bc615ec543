"""Segments as utterances: their names and their audio. A unit decodes a recording once for all segments of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rayssl.data import recordings
from rayssl.data.errors import DecodeError
from rayssl.data.resampling import RATE
from rayssl.data.samples import Channels
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource


def of_recording(whole: Reference, start: int, stop: int) -> Reference:
    """The samples ``start`` to ``stop`` of a recording as an utterance; `whole_of` is the other way round."""
    name = f"{whole.name}@{start / RATE:.3f}-{stop / RATE:.3f}"
    return whole._replace(name=name, recording=whole.recording or whole.name, locator=(*whole.locator, start, stop))


def whole_of(segment: Reference) -> tuple[Reference, int, int]:
    """The recording of an utterance that `of_recording` made, and its start and stop."""
    *locator, start, stop = segment.locator
    name = segment.name.rpartition("@")[0]
    recording = None if segment.recording == name else segment.recording
    return segment._replace(name=name, recording=recording, locator=tuple(locator)), int(start), int(stop)


def read(
    source: CheckedSource, segments: Sequence[Reference], channels: Channels
) -> Iterator[tuple[int, np.ndarray | DecodeError]]:
    """Yields (position in ``segments``, float32 ``[T]`` at 16 kHz), each position once, in any order.

    Where the audio cannot be read, a `DecodeError` is yielded in its place.
    """
    of_recordings: dict[Reference, list[tuple[int, int, int]]] = {}
    for position, segment in enumerate(segments):
        whole, start, stop = whole_of(segment)
        of_recordings.setdefault(whole, []).append((position, start, stop))
    for whole, wanted in of_recordings.items():
        missing = dict.fromkeys(position for position, _, _ in wanted)
        try:
            for position, samples in _excerpts(source, whole, wanted, channels):
                del missing[position]
                yield position, samples
        except DecodeError as error:
            yield from ((position, error) for position in missing)


def _excerpts(
    source: CheckedSource, whole: Reference, wanted: Sequence[tuple[int, int, int]], channels: Channels
) -> Iterator[tuple[int, np.ndarray]]:
    audio = source.open(whole)
    if isinstance(audio, np.ndarray):
        yield from ((position, audio[start:stop]) for position, start, stop in wanted)
        return
    with audio:
        for place, samples in recordings.excerpts(audio, [(start, stop) for _, start, stop in wanted], channels):
            position, start, stop = wanted[place]
            if len(samples) < stop - start:
                raise DecodeError("changed: the recording is shorter than it was when it was examined")
            yield position, samples

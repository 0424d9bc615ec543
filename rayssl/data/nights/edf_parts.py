"""The audio of one night from the EDF parts of one recording, joined by the times of their headers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import numpy as np

from rayssl import storage
from rayssl.data.decode import DecodeError
from rayssl.data.nights.edf import Annotation, EdfFile, open_edf
from rayssl.data.nights.timeline import CLOCK_S, AudioRun, Hole, Recording, joined
from rayssl.errors import StorageError

_DAY = timedelta(days=1)
_EXACT_S = 1e-3  # time stamps of EDF+D are exact


def edf_recording(parts: Sequence[tuple[str, str]], names: list[str]) -> Recording:
    """The EDF ``parts`` (URI, name in messages) of one recording, in order, joined by the times of their headers.

    Args:
        parts: at least one. A part that cannot be read, or lacks the channel, is a hole.
        names: the channel to read: the first of these that a part has.

    Raises:
        DecodeError: no part can be used; it is the reason of the first one.
    """
    usable: list[tuple[EdfFile, int]] = []
    lost: list[tuple[int, str]] = []  # (how many usable parts stand before it, the reason)
    for uri, file in parts:
        try:
            edf = open_edf(uri, file)
            number = edf.channel(names)
            if not edf.records or not edf.channels[number].samples:
                raise DecodeError(f"empty: {file} has no samples")
            usable.append((edf, number))
        except StorageError as error:
            if error.errno not in storage.ABSENT:
                raise
            lost.append((len(usable), f"unreadable: {file} is absent"))
        except DecodeError as error:
            lost.append((len(usable), str(error)))
    if not usable:
        raise DecodeError(lost[0][1])
    clocks = _clocks([edf for edf, _ in usable])
    zero = clocks[0] + timedelta(seconds=_first(usable[0][0]))
    seconds = [(clock - zero).total_seconds() for clock in clocks]
    loudest = max((max(map(abs, edf.channels[number].physical)) for edf, number in usable), default=0.0)
    runs: list[AudioRun] = []
    for place, (edf, number) in enumerate(usable):
        runs += _runs(edf, number, seconds[place], loudest)
        runs[-1].faults += [(math.inf, reason) for before, reason in lost if before == place + 1]
    pieces = [Hole(0.0, reason) for before, reason in lost if before == 0] + joined(runs, zero)
    first = usable[0][0]

    def annotations() -> list[Annotation]:
        return [
            one._replace(onset=one.onset + at)
            for (edf, _), at in zip(usable, seconds, strict=True)
            for one in (edf.times[1] if edf.annotations else ())
        ]

    return Recording(first.file, zero, first.dated, pieces, annotations)


def _first(edf: EdfFile) -> float:
    """How many seconds after the header's time the audio of a file begins."""
    return float(edf.times[0][0]) if edf.discontinuous else edf.lead


def _clocks(edfs: Sequence[EdfFile]) -> list[datetime]:
    """The header's times. Recorders that keep the first part's date go back by a day at midnight: that is corrected."""
    clocks: list[datetime] = []
    for edf in edfs:
        clock = edf.clock
        while clocks and clock < clocks[-1] - _DAY / 2 and edf.clock.date() == edfs[0].clock.date():
            clock += _DAY
        clocks.append(clock)
    return clocks


def _runs(edf: EdfFile, number: int, second: float, loudest: float) -> list[AudioRun]:
    """The runs of one file whose header's time is ``second`` of the night: one, or several of a discontinuous file."""
    samples, rate = edf.channels[number].samples, edf.rate(number)

    def run(first: int, count: int, start: float, tolerance: float) -> AudioRun:
        def blocks(skip: int) -> Iterator[np.ndarray]:
            yield from _scaled(edf, number, first, count, skip, loudest)

        return AudioRun(edf.file, start, count * samples, rate, blocks, tolerance)

    made: list[AudioRun] = []
    if edf.discontinuous:
        onsets = edf.times[0]
        breaks = np.flatnonzero(np.abs(np.diff(onsets) - edf.record_s) > _EXACT_S) + 1
        edges = [0, *breaks.tolist(), edf.records]
        for first, after in itertools.pairwise(edges):
            tolerance = CLOCK_S if first == 0 else _EXACT_S
            made.append(run(first, after - first, second + float(onsets[first]), tolerance))
    else:
        made.append(run(0, edf.records, second + edf.lead, CLOCK_S))
    missing = (edf.promised - edf.records) * edf.record_s
    if missing > 0:
        said = f"{edf.file} holds {edf.records} of {edf.promised} records"
        made[-1].faults.append((missing, f"truncated: {said}; what is whole is kept"))
    elif edf.loose:
        made[-1].faults.append((edf.record_s, f"truncated: {edf.file} ends inside a record; what is whole is kept"))
    return made


def _scaled(edf: EdfFile, number: int, first: int, count: int, skip: int, loudest: float) -> Iterator[np.ndarray]:
    """Samples as the physical value over ``loudest``, so that all parts of a night have one scale."""
    _, _, samples, (low, high), (least, most) = edf.channels[number]
    if high == low or most == least or not np.isfinite([least, most]).all() or not 0 < loudest < math.inf:
        gain, offset = 1 / 32768, 0.0  # the header does not say what the numbers mean
    else:
        gain = (most - least) / (high - low) / loudest
        offset = least / loudest - gain * low
    records = skip // samples
    skip -= records * samples
    for block in edf.digital(number, first + records, count - records):
        at = min(skip, len(block))
        skip -= at
        yield block[at:].astype(np.float32) * np.float32(gain) + np.float32(offset)

"""EDF and EDF+ files that are read in ranges: the header, the records of one channel, time stamps and annotations.

edfio reads the header and takes a channel out of records; it accepts a header and a few records as a file of its own.
So a range of an object costs one request, and the file never lies in memory or on the disk. What edfio does not say is
read here: when each record of a discontinuous file (EDF+D) begins.

An EDF file is a header of 256 bytes, 256 bytes more for each signal, and records. A record holds the samples of each
signal, int16 little-endian, one signal after the other. In EDF+ a signal "EDF Annotations" holds time-stamped
annotation lists (TAL) as text; the first one of a record says when it begins, in seconds after the header's time.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cached_property
from typing import NamedTuple

import edfio
import numpy as np

from rayssl import storage
from rayssl.data.decode import DecodeError

#: The date that EDF prescribes where the true one is not given, and where the two digits of a year turn around.
NO_DATE = date(1985, 1, 1)
BLOCK_S = 30.0  # of a range that is read at once

_HEAD = 256
_ANNOTATIONS = "EDF Annotations"
_RANGES_AT_ONCE = 512
_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14")


class Channel(NamedTuple):
    """One signal: ``samples`` int16 in each record, from number ``first`` of the record's int16 on.

    ``digital`` and ``physical`` are the (minimum, maximum) of the header; they are the same two points.
    """

    label: str
    first: int
    samples: int
    digital: tuple[int, int]
    physical: tuple[float, float]


class Annotation(NamedTuple):
    """``onset`` in seconds after the header's time; ``duration`` in seconds, or None."""

    onset: float
    duration: float | None
    text: str


@dataclass(frozen=True)
class EdfFile:
    """What the header says, and how much of it is there.

    ``clock``: date and time of the header. ``dated``: whether the day of it is known. ``lead``: how many seconds later
    the first record begins; a fraction of a second in EDF+, else 0. ``records``: the number of whole records in the
    file; ``promised``: the number that the header states, ``records`` if it states none (-1).
    ``loose``: bytes of an unfinished record behind the whole ones. ``record_s``: seconds of a record.
    ``discontinuous``: records may be apart in time (EDF+D).
    """

    uri: str
    file: str
    header: bytes
    clock: datetime
    dated: bool
    lead: float
    records: int
    promised: int
    loose: int
    record_s: float
    record_bytes: int
    discontinuous: bool
    channels: tuple[Channel, ...]
    annotations: tuple[Channel, ...]

    def channel(self, names: list[str]) -> int:
        """The position of the first channel of ``names`` in ``channels``; upper and lower case are the same.

        Raises:
            DecodeError: there is none of them; the message names those that are there.
        """
        labels = [channel.label.lower() for channel in self.channels]
        for name in names:
            if name.strip().lower() in labels:
                return labels.index(name.strip().lower())
        wanted = " or ".join(f"'{name}'" for name in names)
        there = ", ".join(channel.label for channel in self.channels) or "none"
        raise DecodeError(f"no channel: {self.file} has no channel {wanted}; set channel to one of: {there}")

    def rate(self, number: int) -> float:
        """The rate of channel ``number`` in Hz."""
        return self.channels[number].samples / self.record_s

    def digital(self, number: int, first: int, count: int) -> Iterator[np.ndarray]:
        """The samples of channel ``number`` in ``count`` records from record ``first``, in blocks of about 30 s.

        Yields:
            int16 ``[T]``, T at most ``BLOCK_S`` seconds or one record's samples.

        Raises:
            DecodeError: the file has become shorter.
        """
        samples = self.channels[number].samples
        most = max(1, round(BLOCK_S * self.rate(number)))
        if samples > most:  # a record of an hour, say: only this channel's part of it is read
            for record in range(first, first + count):
                start = self._place(record) + 2 * self.channels[number].first
                for at in range(0, samples, most):
                    yield np.frombuffer(self._bytes(start + 2 * at, 2 * min(most, samples - at)), "<i2")
            return
        step = max(1, most // samples)
        for record in range(first, first + count, step):
            held = min(step, first + count - record)
            data = self._bytes(self._place(record), held * self.record_bytes)
            yield _parsed(self.header, held, data).signals[number].digital

    @cached_property
    def times(self) -> tuple[np.ndarray, list[Annotation]]:
        """When each record begins, float64 ``[records]`` in seconds after the header's time; and all annotations.

        It reads the annotations of the whole file. From a local file no other bytes are read.

        Raises:
            DecodeError: a record has no time stamp.
        """
        onsets, found = np.arange(self.records) * self.record_s, []
        for record, texts in enumerate(self._lists()):
            lists = [_lists(text) for text in texts]
            if not lists or not lists[0]:
                raise DecodeError(f"damaged: record {record} of {self.file} has no time stamp")
            onsets[record] = lists[0][0].onset
            found += [one for number, each in enumerate(lists) for one in each[number == 0 :] if one.text]
        return onsets, found

    def _lists(self) -> Iterator[list[bytes]]:
        """The bytes of each annotation signal, record after record."""
        spans = [(2 * channel.first, 2 * channel.samples) for channel in self.annotations]
        local = "://" not in self.uri
        step = _RANGES_AT_ONCE if local else max(1, round(BLOCK_S / self.record_s) if self.record_s else 1)
        for first in range(0, self.records, step):
            places = [self._place(record) for record in range(first, min(first + step, self.records))]
            if local:
                wanted = [(place + start, size) for place in places for start, size in spans]
                parts = [bytes(part) for part in storage.read_ranges(self.uri, wanted)]
                yield from (parts[at : at + len(spans)] for at in range(0, len(parts), max(1, len(spans))))
                continue
            data = self._bytes(places[0], len(places) * self.record_bytes)
            for at in range(0, len(data), self.record_bytes):
                yield [data[at + start : at + start + size] for start, size in spans]

    def _place(self, record: int) -> int:
        return len(self.header) + record * self.record_bytes

    def _bytes(self, start: int, size: int) -> bytes:
        data = storage.read_range(self.uri, start, size)
        if len(data) < size:
            raise DecodeError(f"truncated: {self.file} has become shorter while it was read")
        return data


def open_edf(uri: str, file: str) -> EdfFile:
    """Reads the header of the EDF file at ``uri``; ``file`` is its name in messages.

    Raises:
        DecodeError: it is not EDF, or its header contradicts itself.
        StorageError: it cannot be read.
    """
    with storage.open_read(uri) as opened:
        size = opened.seek(0, 2)
    head = storage.read_range(uri, 0, _HEAD)
    try:
        count = int(head[252:256])
        header = storage.read_range(uri, 0, _HEAD * (1 + count))
        if len(head) < _HEAD or len(header) < _HEAD * (1 + count) or count < 1:
            raise ValueError("the header is not whole")
        if head[:8].strip() != b"0":
            raise ValueError("it does not begin as EDF")
        return _described(uri, file, header, size)
    except ValueError as error:
        raise DecodeError(f"unreadable: {file} is not EDF, or its header is damaged: {error or 'empty'}") from None


def _described(uri: str, file: str, header: bytes, size: int) -> EdfFile:
    """The facts of a whole header; raises `ValueError` if a field is none of its kind."""
    signals, first = [], 0
    for position in range(len(header) // _HEAD - 1):
        label, samples = _field(header, position, 0, 16), int(_field(header, position, 216, 8))
        signals.append((label, first, samples))
        first += samples
    record_s, record_bytes = float(header[244:252]), 2 * first
    sounds = any(label != _ANNOTATIONS for label, _, _ in signals)
    if record_bytes <= 0 or min(samples for _, _, samples in signals) < 0 or (sounds and not 0 < record_s < math.inf):
        raise ValueError(f"records of {record_bytes} bytes and {record_s:g} s")
    made = _parsed(header, 0, b"")
    known = iter(made.signals)
    channels, annotations = [], []
    for label, at, samples in signals:
        if label == _ANNOTATIONS:
            annotations.append(Channel(label, at, samples, (0, 0), (0.0, 0.0)))
            continue
        signal = next(known)
        digital = (signal.digital_min, signal.digital_max)
        physical = (signal.physical_min, signal.physical_max)
        channels.append(Channel(label, at, samples, digital, physical))
    held, loose = divmod(size - len(header), record_bytes)
    stated = int(header[236:244])
    promised = stated if stated > 0 else held
    clock, dated = _start(made, header)
    plus = header[192:236].decode("latin-1").strip()
    opened = EdfFile(
        uri=uri,
        file=file,
        header=header,
        clock=clock,
        dated=dated,
        lead=0.0,
        records=min(held, promised),
        promised=promised,
        loose=loose if held <= promised else 0,
        record_s=record_s,
        record_bytes=record_bytes,
        discontinuous=plus.startswith("EDF+D"),
        channels=tuple(channels),
        annotations=tuple(annotations),
    )
    return _with_fraction(opened) if plus.startswith("EDF+C") else opened


def _field(header: bytes, position: int, offset: int, size: int) -> str:
    """The field of one signal. Fields stand together by kind; ``offset`` is that of a file with one signal."""
    count = len(header) // _HEAD - 1
    at = _HEAD + count * offset + position * size
    return header[at : at + size].decode("latin-1").strip()


def _start(made: edfio.Edf, header: bytes) -> tuple[datetime, bool]:
    """The header's date and time. EDF+ repeats the date with four digits of the year, or says X where it is hidden."""
    day, month, year = _digits(header[168:176])
    hour, minute, second = _digits(header[176:184])
    found = date(year + (1900 if year >= NO_DATE.year % 100 else 2000), month, day)
    with suppress(ValueError):  # not EDF+, or the date is X there
        found = made.recording.startdate
    return datetime(found.year, found.month, found.day, hour, minute, second), found != NO_DATE


def _digits(field: bytes) -> tuple[int, int, int]:
    found = re.fullmatch(rb"\s*(\d{1,2})\D\s*(\d{1,2})\D\s*(\d{1,2})\s*", field)
    if found is None:
        raise ValueError(f"no date or time: {field!r}")
    first, second, third = map(int, found.groups())
    return first, second, third


def _with_fraction(opened: EdfFile) -> EdfFile:
    """EDF+ may begin a fraction of a second after the header's time: the first time stamp says so."""
    if not opened.annotations or not opened.records:
        return opened
    first = opened.annotations[0]
    lists = _lists(storage.read_range(opened.uri, len(opened.header) + 2 * first.first, 2 * first.samples))
    fraction = lists[0].onset if lists else 0.0
    return replace(opened, lead=fraction) if 0 < fraction < 1 else opened


def _parsed(header: bytes, count: int, records: bytes) -> edfio.Edf:
    """``count`` records behind the header, as a file of their own."""
    head = header[:236] + b"%-8d" % count + header[244:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return edfio.read_edf(head + records, lazy_load_data=True, header_encoding="latin-1")


def _lists(data: bytes) -> list[Annotation]:
    """The annotations of one record's signal, the time stamp among them (without text)."""
    made = []
    for piece in data.split(b"\x00"):
        found = _TAL.match(piece)
        if found is None:
            continue
        onset, duration = float(found[1]), None if found[2] is None else float(found[2])
        for text in piece[found.end() :].removesuffix(b"\x14").split(b"\x14"):
            made.append(Annotation(onset, duration, text.decode("utf-8", "replace").strip()))
    return made

"""Who sleeps how, and when: the stages of a night from a label file, as intervals with a clock.

`rayssl.data.nights.rml` reads RML. This module reads hypnograms in two forms, and stages among EDF+ annotations:

- CSV (comma, semicolon or tab) with a line of names: ``onset`` (or ``start``) and ``stage``, perhaps ``duration``; or
  ``epoch`` and ``stage``. An onset is seconds, a time of day (23:59:30) or a date and time.
- TXT with one stage in a line, one line for each epoch of 30 s.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np

from rayssl.data.decode import DecodeError
from rayssl.data.nights import stages
from rayssl.data.nights.edf import Annotation
from rayssl.data.sources.nights import EPOCH_S, UNSCORED

_ONSET = ("onset", "start", "start_s", "onset_s", "time", "start_time", "start time")
_DURATION = ("duration", "duration_s", "length")
_STAGE = ("stage", "sleep_stage", "sleep stage", "label", "annotation", "description", "event")
_EPOCH = ("epoch", "epoch_index", "index")
_DAY_S = 86400


class Scoring(NamedTuple):
    """The stages of a night. Interval k lasts from ``onsets[k]`` to ``ends[k]`` and has the stage ``stages[k]``.

    ``file``: the label file, for messages. ``clock``: the time of day of second 0; None: the audio's beginning.
    ``onsets``, ``ends``: float64 ``[N]`` in seconds, ascending, without overlap; N is at least 1. ``stages``: int64
    ``[N]``, indices into `STAGES` or `UNSCORED`. The 30 s grid of the scoring goes through ``onsets[0]``. ``notes``:
    what the user should know, each as the reason of a `Dropped`.
    """

    file: str
    clock: datetime | None
    onsets: np.ndarray
    ends: np.ndarray
    stages: np.ndarray
    notes: tuple[str, ...] = ()

    def stage(self, start: float) -> int:
        """The stage of the epoch that begins at second ``start``: the one that holds most of its 30 s, at least half.

        The epochs of a scorer who used 20 s, or who moved a boundary, get the stage that they have for longest.
        """
        first = int(np.searchsorted(self.ends, start, "right"))
        last = int(np.searchsorted(self.onsets, start + EPOCH_S, "left"))
        held: dict[int, float] = {}
        for place in range(first, last):
            seconds = min(self.ends[place], start + EPOCH_S) - max(self.onsets[place], start)
            held[int(self.stages[place])] = held.get(int(self.stages[place]), 0.0) + float(seconds)
        best = max(held, key=lambda stage: (held[stage], -stage), default=UNSCORED)
        return best if held.get(best, 0.0) >= EPOCH_S / 2 - 1e-6 else UNSCORED


def scoring(
    file: str,
    clock: datetime | None,
    intervals: Sequence[tuple[float, float | None, int]],
    notes: Sequence[str] = (),
) -> Scoring:
    """A `Scoring` of (onset, end or None, stage) in any order. Without an end, the next onset ends an interval.

    An interval that reaches over the next onset ends there. The last one without an end lasts one epoch.
    """
    ordered = sorted(intervals, key=lambda one: one[0])
    onsets = np.array([onset for onset, _, _ in ordered], np.float64)
    following = [*onsets[1:].tolist(), None]
    ends = []
    for (onset, end, _), after in zip(ordered, following, strict=True):
        limits = [each for each in (end, after) if each is not None]
        ends.append(min(limits) if limits else onset + EPOCH_S)
    kept = np.array(ends) > onsets
    found = np.array([stage for _, _, stage in ordered], np.int64)
    return Scoring(file, clock, onsets[kept], np.array(ends)[kept], found[kept], tuple(notes))


def from_lines(file: str, text: str) -> Scoring:
    """One stage in a line; empty lines and lines that begin with # are passed over.

    Raises:
        DecodeError: a line is no stage, or there is none.
    """
    found = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(_known(file, number, line))
    if not found:
        raise DecodeError(f"no scoring: {file} has no stages")
    return scoring(file, None, [(k * EPOCH_S, (k + 1) * EPOCH_S, stage) for k, stage in enumerate(found)])


def from_csv(file: str, text: str) -> Scoring:
    """A hypnogram in columns, see above. Epochs count from the lowest number: 0 or 1 is the first epoch.

    Times of day may pass midnight. Only dates and times, and times of day, say when the first row was; seconds count
    from the audio's beginning.

    Raises:
        DecodeError: a column is missing, or a line is malformed.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines:
        raise DecodeError(f"no scoring: {file} is empty")
    mark = max(",;\t", key=lines[0].count)
    rows = csv.DictReader(lines, delimiter=mark)
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    onset, duration, stage, epoch = (
        next((names[name] for name in wanted if name in names), None) for wanted in (_ONSET, _DURATION, _STAGE, _EPOCH)
    )
    if stage is None or (onset is None and epoch is None):
        there = ", ".join(names) or "nothing"
        raise DecodeError(
            f"unreadable: {file}: line 1: needs the columns onset and stage, or epoch and stage ({there})"
        )
    starts, spans, found = [], [], []
    for row in rows:
        line = rows.line_num
        found.append(_known(file, line, row[stage] or ""))
        starts.append(_time(file, line, row[onset] or "") if onset is not None else _number(file, line, row[epoch]))
        spans.append(_number(file, line, row[duration]) if duration is not None and row[duration] else None)
    if not found:
        raise DecodeError(f"no scoring: {file} has no stages")
    clock, seconds = _seconds(file, starts)
    if onset is None:
        lowest = 0.0 if min(seconds) < 1 else 1.0
        seconds = [EPOCH_S * (number - lowest) for number in seconds]
        spans = [span or float(EPOCH_S) for span in spans]
    intervals = [(a, None if b is None else a + b, c) for a, b, c in zip(seconds, spans, found, strict=True)]
    return scoring(file, clock, intervals)


def from_annotations(file: str, annotations: Sequence[Annotation], clock: datetime) -> Scoring | None:
    """The stages among EDF+ annotations; None if there are none. Their onsets are seconds after ``clock``.

    If any text says that it is a sleep stage ("Sleep stage W"), only such texts are stages. Else the texts are that
    are the name of one ("N2", R&K's "1").
    """
    said = [one for one in annotations if stages.has_prefix(one.text)]
    known, unknown = [], []
    for one in said or annotations:
        stage = stages.stage(one.text) if one.text.strip() else None
        if stage is not None or said:
            end = None if not one.duration else one.onset + one.duration
            known.append((one.onset, end, UNSCORED if stage is None else stage))
        if stage is None and said:
            unknown.append(one.text)
    if not known:
        return None
    names = ", ".join(f"'{text}'" for text in dict.fromkeys(unknown))
    return scoring(file, clock, known, [f"unscored: {file} has unknown stages: {names}"] if unknown else [])


def _known(file: str, line: int, name: str) -> int:
    stage = stages.stage(name)
    if stage is None:
        raise DecodeError(f"unreadable: {file}: line {line}: '{name.strip()}' is not the name of a sleep stage")
    return stage


def _number(file: str, line: int, text: str | None) -> float:
    try:
        found = float(text or "")
    except ValueError:
        found = float("nan")
    if not np.isfinite(found):
        raise DecodeError(f"unreadable: {file}: line {line}: '{text}' is not a number")
    return found


def _time(file: str, line: int, text: str) -> float | datetime | timedelta:
    """Seconds, a date and time, or a time of day as the time since midnight."""
    value = text.strip()
    try:
        if value.count(":") in (1, 2) and "-" not in value:
            hours, minutes, seconds = [*value.split(":"), "0"][:3]
            return timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
        if ":" in value:
            return datetime.fromisoformat(value).replace(tzinfo=None)
    except ValueError:
        raise DecodeError(f"unreadable: {file}: line {line}: '{value}' is not a time") from None
    return _number(file, line, value)


def _seconds(file: str, starts: Sequence[float | datetime | timedelta]) -> tuple[datetime | None, list[float]]:
    """The clock of second 0 and the onsets in seconds. Times of day get the year 1: only their hour counts."""
    first = starts[0]
    if not all(type(one) is type(first) for one in starts):
        raise DecodeError(f"unreadable: {file}: its onsets are partly seconds and partly times")
    if isinstance(first, datetime):
        return first, [(one - first).total_seconds() for one in starts if isinstance(one, datetime)]
    if not isinstance(first, timedelta):
        return None, [float(one) for one in starts if isinstance(one, float)]
    seconds, days, before = [], 0, first.total_seconds()
    for one in starts:
        now = one.total_seconds() if isinstance(one, timedelta) else 0.0
        days += now < before - _DAY_S / 2
        before = now
        seconds.append(now + days * _DAY_S - first.total_seconds())
    return datetime.min + first, seconds

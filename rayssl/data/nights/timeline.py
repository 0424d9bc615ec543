"""The audio of a night in time: stretches without a seam, and holes between them; and its cut into epochs.

Files give runs: pieces of audio, each with the time at which it begins. `joined` makes stretches of the runs that
follow each other without a gap. `cut` resamples each stretch as one stream and cuts it on a grid of 30 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from rayssl.data.errors import DecodeError
from rayssl.data.nights.edf import Annotation
from rayssl.data.resampling import RATE, length, resampled
from rayssl.data.sources.nights import EPOCH_S, EPOCH_SAMPLES, Dropped

#: How far the clocks of two files may be apart without a gap: a header's time has whole seconds.
CLOCK_S = 1.0


@dataclass
class AudioRun:
    """Audio of one file: ``samples`` float32 at ``rate`` Hz from second ``start`` of the night on.

    ``blocks(skip)`` gives them without the first ``skip``, in blocks ``[T]``, and raises `DecodeError` where they end
    early. ``tolerance``: how many seconds ``start`` may be wrong. ``faults``: what should follow but is lost, each as
    (seconds, the reason of a `Dropped`); infinity where nobody knows how long it was.
    """

    file: str
    start: float
    samples: int
    rate: float
    blocks: Callable[[int], Iterator[np.ndarray]]
    tolerance: float = CLOCK_S
    faults: list[tuple[float, str]] = field(default_factory=list)

    @property
    def end(self) -> float:
        """The second of the night at which it ends."""
        return self.start + self.samples / self.rate


@dataclass
class Stretch:
    """Runs without a gap: (run, samples to skip) one after the other, at one rate, from second ``start`` on."""

    start: float
    rate: float
    runs: list[tuple[AudioRun, int]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """The number of samples at ``rate``."""
        return sum(run.samples - skip for run, skip in self.runs)

    @property
    def end(self) -> float:
        """The second of the night at which it ends."""
        return self.start + self.samples / self.rate

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples in blocks, float32 ``[T]``."""
        for run, skip in self.runs:
            yield from run.blocks(skip)


@dataclass
class Hole:
    """No audio until second ``end`` of the night, for the ``reason`` of a `Dropped`."""

    end: float
    reason: str


@dataclass
class Recording:
    """The audio of a night. ``clock``: when second 0 is, None if unknown; ``dated``: whether its day is known too.

    ``file``: its first file, for messages. ``annotations()``: those of EDF+, in seconds of the night; it may read much.
    """

    file: str
    clock: datetime | None
    dated: bool
    pieces: list[Stretch | Hole]
    annotations: Callable[[], list[Annotation]] = list

    @property
    def end(self) -> float:
        """The second of the night at which its audio ends."""
        return max(piece.end for piece in self.pieces if isinstance(piece, Stretch))


def joined(runs: Iterable[AudioRun], clock: datetime | None = None) -> list[Stretch | Hole]:
    """Stretches and holes in order of time. ``clock``: the time of second 0, for messages.

    What a run repeats of the audio before it is passed over.
    """
    pieces: list[Stretch | Hole] = []
    stretch: Stretch | None = None
    before: AudioRun | None = None
    for run in runs:
        if stretch is None or before is None:
            stretch = Stretch(run.start, run.rate, [(run, 0)])
            pieces.append(stretch)
        else:
            end, skip = stretch.end, 0
            pieces += [Hole(min(run.start, end + missing), reason) for missing, reason in before.faults]
            known = max([end, *(end + missing for missing, _ in before.faults)])
            ends, begins = (
                f"{before.file} ends at {shown(clock, end)}",
                f"{run.file} begins at {shown(clock, run.start)}",
            )
            if run.start > known + run.tolerance:
                pieces.append(Hole(run.start, f"gap: {ends}, {begins}"))
            elif run.start < end - run.tolerance:
                skip = min(run.samples, round((end - run.start) * run.rate))
                pieces.append(Hole(end, f"overlap: {begins}, {ends}; what comes twice is used once"))
            apart = run.start > end + run.tolerance
            if run.rate != stretch.rate and not apart:
                pieces.append(Hole(end, f"gap: {run.file} has {run.rate:g} Hz, {before.file} {stretch.rate:g} Hz"))
            if apart or run.rate != stretch.rate:
                stretch = Stretch(run.start if apart else end, run.rate)
                pieces.append(stretch)
            stretch.runs.append((run, skip))
        before = run
    if stretch is not None and before is not None:
        lost = [(0.0 if math.isinf(missing) else missing, reason) for missing, reason in before.faults]
        pieces += [Hole(stretch.end + missing, reason) for missing, reason in lost]
    return pieces


def shown(clock: datetime | None, second: float) -> str:
    """Second ``second`` of a night as a date and time; as seconds if its clock is unknown."""
    if clock is None:
        return f"second {second:g}"
    moment = clock + timedelta(seconds=round(second))
    return moment.isoformat(" ", "seconds") if clock.year > 1 else moment.time().isoformat("seconds")


def cut(pieces: Sequence[Stretch | Hole], boundary: float) -> Iterator[tuple[int, np.ndarray] | Dropped]:
    """The whole epochs of a night on the grid that goes through second ``boundary``.

    Epoch 0 begins at the first boundary at or after second 0. What is before it, and what is less than an epoch at the
    end of the night, is passed over.

    Yields:
        (index, float32 ``[EPOCH_SAMPLES]`` in [-1, 1]); and for each hole a `Dropped` with the whole epochs in it.
    """
    grid = round(boundary * RATE) % EPOCH_SAMPLES
    after = 0
    holes: list[Hole] = []
    for piece in pieces:
        if isinstance(piece, Hole):
            holes.append(piece)
            continue
        begins = round(piece.start * RATE)
        first = max(after, -(-(begins - grid) // EPOCH_SAMPLES))
        if first >= (begins + length(piece.samples, piece.rate) - grid) // EPOCH_SAMPLES:
            continue  # shorter than an epoch: a part of the hole
        yield from _dropped(holes, grid, after, first)
        holes, after = [], first
        try:
            for samples in _epochs(piece, grid + first * EPOCH_SAMPLES - begins):
                yield after, samples
                after += 1
        except DecodeError as error:
            holes.append(Hole(piece.end, str(error)))
    ends = max((round(piece.end * RATE) for piece in pieces), default=0)
    yield from _dropped(holes, grid, after, max(after, (ends - grid) // EPOCH_SAMPLES))


def _dropped(holes: Sequence[Hole], grid: int, after: int, first: int) -> Iterator[Dropped]:
    """The epochs from ``after`` up to ``first`` by hole: each belongs to the first hole in which a part of it lies."""
    for number, hole in enumerate(holes):
        ends = -(-(round(hole.end * RATE) - grid) // EPOCH_SAMPLES)
        until = first if number == len(holes) - 1 else min(first, max(after, ends))
        yield Dropped(hole.reason, until - after)
        after = until


def _epochs(stretch: Stretch, skip: int) -> Iterator[np.ndarray]:
    """The whole epochs from sample ``skip`` (at 16 kHz) of the stretch on."""
    samples, filled = np.empty(EPOCH_SAMPLES, np.float32), 0
    for block in resampled(stretch.blocks(), stretch.rate):
        at = min(skip, len(block))
        skip -= at
        while at < len(block):
            count = min(EPOCH_SAMPLES - filled, len(block) - at)
            samples[filled : filled + count] = block[at : at + count]
            filled, at = filled + count, at + count
            if filled == EPOCH_SAMPLES:
                yield samples
                samples, filled = np.empty(EPOCH_SAMPLES, np.float32), 0


def seconds_of(epoch: int, boundary: float) -> float:
    """The second of the night at which epoch ``epoch`` of `cut` begins."""
    return round(boundary * RATE) % EPOCH_SAMPLES / RATE + epoch * EPOCH_S

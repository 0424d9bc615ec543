"""Labels and audio on one clock: how far they are apart, whether they are of one night, and what one of them lacks."""

from __future__ import annotations

from collections.abc import Iterator

from rayssl.data.decode import DecodeError
from rayssl.data.nights.scorings import Scoring
from rayssl.data.nights.timeline import Recording, seconds_of, shown
from rayssl.data.sources.nights import EPOCH_S, Dropped

_DAY_S = 86400.0


def shift(scoring: Scoring, recording: Recording, offset: float, most_hours: float) -> float:
    """The second of the night at which second 0 of the scoring is; ``offset`` seconds are added.

    Both clocks say it. If one side has none, the scoring begins with the audio. If one side has no date, the day is
    taken on which the beginnings are nearest to each other.

    Raises:
        DecodeError: they have no time in common, or the scoring begins more than ``most_hours`` earlier or later.
    """
    apart = 0.0
    if scoring.clock is not None and recording.clock is not None:
        if recording.dated and scoring.clock.year > 1:
            apart = (scoring.clock - recording.clock).total_seconds()
        else:
            at, zero = (each.replace(2000, 1, 1) for each in (scoring.clock, recording.clock))
            apart = ((at - zero).total_seconds() + _DAY_S / 2) % _DAY_S - _DAY_S / 2
    begins, ends = (float(second) + apart + offset for second in (scoring.onsets[0], scoring.ends[-1]))
    common = begins < recording.end and ends > 0
    if common and abs(apart) <= 3600 * most_hours:
        return apart + offset
    times = [shown(recording.clock, second) for second in (begins, ends, 0.0, recording.end)]
    said = f"{scoring.file} is from {times[0]} to {times[1]}, {recording.file} from {times[2]} to {times[3]}"
    way = "set max_start_difference_h if that is right" if common else "give the night its own label file"
    raise DecodeError(f"another night: {said}; {way}")


def missing(scoring: Scoring, recording: Recording, shift: float) -> Iterator[Dropped]:
    """What one side lacks: scored epochs before and behind the audio, and, as remarks, audio that nobody scored."""
    begins, ends = (float(second) + shift for second in (scoring.onsets[0], scoring.ends[-1]))
    last = max(piece.end for piece in recording.pieces)
    before = round((seconds_of(0, begins) - begins) / EPOCH_S) if begins < 0 else 0
    after = int((ends - last + 1e-6) // EPOCH_S) if ends > last else 0
    starts = (
        f"{scoring.file} begins at {shown(recording.clock, begins)}, {recording.file} at {shown(recording.clock, 0)}"
    )
    stops = (
        f"{scoring.file} ends at {shown(recording.clock, ends)}, the audio at {shown(recording.clock, recording.end)}"
    )
    if before:
        yield Dropped(f"no audio: {starts}", before)
    if after:
        yield Dropped(f"no audio: {stops}", after)
    if begins >= EPOCH_S:
        yield Dropped(f"unscored: {starts}", 0)
    if recording.end - ends >= EPOCH_S:
        yield Dropped(f"unscored: {stops}", 0)


def unscored(scoring: Scoring, start: float) -> str:
    """Why the epoch at second ``start`` of the scoring has no stage, as the reason of a `Dropped`."""
    middle = start + EPOCH_S / 2
    if middle < scoring.onsets[0]:
        return f"unscored: {scoring.file} begins later"
    return f"unscored: {scoring.file} " + ("ends earlier" if middle > scoring.ends[-1] else "gives no stage")

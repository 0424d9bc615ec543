"""Which segments of all recordings the corpus gets, and a table of what was left out, and why.

    <uri>/segments.parquet    recording string, start float64, stop float64, reason string; one row for each segment

Times are seconds of the recording. The reason is empty if the segment is in the corpus; its name there is
``recording@start-stop``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.data.resampling import RATE
from rayssl.data.segments.duplicates import near
from rayssl.data.segments.entry import PATH, LeftOut, SegmentsEntry
from rayssl.data.segments.examined import Examination
from rayssl.data.segments.fingerprints import from_text
from rayssl.data.segments.reading import of_recording
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.data.sources.base import Reference

_SHARD_S = 2048.0  # of audio in a shard of segments: its samples are 65 MB
NO_SPEECH, SHORT, EXACT, NEAR = "no speech", "too short", "duplicate", "near duplicate"


class ListedSegment(NamedTuple):
    """Samples ``start`` to ``stop`` of recording ``recording``; ``reason``: why it is not in the corpus, or nothing."""

    recording: int
    start: int
    stop: int
    reason: str = ""


@dataclass
class ChosenSegments:
    """The recordings in order of their names, and their segments. ``unusable``: the rejected ones, and why."""

    references: list[Reference]
    segments: list[ListedSegment]
    dropped: dict[str, LeftOut]
    samples: int
    unusable: dict[int, str] = field(default_factory=dict)

    def kept(self) -> Iterator[tuple[Reference, str]]:
        """Each segment as an utterance, and the name of its group: segments that are to get into the same shard."""
        per, counted = self.shard_utterances(), defaultdict[int, int](int)
        for segment in (segment for segment in self.segments if not segment.reason):
            whole = self.references[segment.recording]
            group = f"{whole.name}\n{counted[segment.recording] // per}"
            counted[segment.recording] += 1
            yield of_recording(whole, segment.start, segment.stop), group

    def shard_utterances(self, most: int | None = None) -> int:
        """How many segments a shard gets, at most ``most``: so that a task needs little memory."""
        kept = [segment.stop - segment.start for segment in self.segments if not segment.reason]
        fit = max(1, int(_SHARD_S * RATE * len(kept) / max(1, sum(kept))))
        return fit if most is None else min(most, fit)

    def write(self, uri: str) -> SegmentsEntry:
        """Writes the table of segments, and returns its entry for the manifest."""
        names = pa.array([reference.name for reference in self.references])
        recordings = pa.array([segment.recording for segment in self.segments], pa.int64())
        columns = [
            names.take(recordings) if len(self.references) else pa.array([], pa.string()),
            pa.array(np.array([segment.start for segment in self.segments]) / RATE, pa.float64()),
            pa.array(np.array([segment.stop for segment in self.segments]) / RATE, pa.float64()),
            pa.array([segment.reason for segment in self.segments], pa.string()),
        ]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, ["recording", "start", "stop", "reason"]), buffer, compression="zstd")
        data = buffer.getvalue()
        storage.write_bytes(storage.join(uri, PATH), data)
        kept = sum(segment.stop - segment.start for segment in self.segments if not segment.reason)
        return SegmentsEntry(
            path=PATH,
            sha256=hashlib.sha256(data).hexdigest(),
            recordings=len(self.references) - len(self.unusable),
            seconds=round(self.samples / RATE, 3),
            kept=sum(not segment.reason for segment in self.segments),
            kept_seconds=round(kept / RATE, 3),
            dropped=dict(sorted(self.dropped.items())),
        )


def digest(references: Iterable[Reference]) -> str:
    """A hash of recordings in order of their names, to see later whether a corpus was made of them."""
    made = hashlib.sha256()
    for reference in references:
        made.update(json.dumps(list(reference), ensure_ascii=False).encode() + b"\n")
    return made.hexdigest()[:16]


def select(
    examined: Iterable[tuple[Sequence[Reference], Sequence[Examination]]], config: SegmentsConfig
) -> ChosenSegments:
    """The segments to keep, of recordings in any order. The result does not depend on it."""
    both = sorted(
        (pair for references, cuts in examined for pair in zip(references, cuts, strict=True)),
        key=lambda pair: pair[0].name,
    )
    made = ChosenSegments([reference for reference, _ in both], [], {}, sum(cut.samples for _, cut in both))
    seen, prints = dict[str, str](), list[tuple[int, str]]()
    for number, (reference, cut) in enumerate(both):
        if cut.reason is not None:
            made.unusable[number] = cut.reason
            continue
        first = seen.setdefault(cut.sha256, reference.name)
        if first != reference.name and config.duplicates != "keep":
            made.segments.append(ListedSegment(number, 0, cut.samples, f"{EXACT} of '{first}'"))
            _drop(made, EXACT, 1, cut.samples)
            continue
        if cut.pauses:
            _drop(made, NO_SPEECH if config.detector != "none" else "silence", 0, cut.pauses)
        if cut.short[0]:
            _drop(made, f"{SHORT} (below {config.min_s:g} s)", *cut.short)
        prints += [(len(made.segments) + place, text) for place, text in enumerate(cut.prints)]
        made.segments += [ListedSegment(number, start, stop) for start, stop in cut.segments]
    _drop_near(made, prints)
    return made


def _drop_near(made: ChosenSegments, prints: Sequence[tuple[int, str]]) -> None:
    """Gives a reason to all segments that sound like a longer one, or like an earlier one of the same length."""
    of_segment = dict(prints)
    order = sorted(of_segment, key=lambda number: (made.segments[number].start - made.segments[number].stop, number))
    for copy, other in near([from_text(of_segment[number]) for number in order]).items():
        segment, original = made.segments[order[copy]], made.segments[order[other]]
        name = of_recording(made.references[original.recording], original.start, original.stop).name
        made.segments[order[copy]] = segment._replace(reason=f"{NEAR} of '{name}'")
        _drop(made, NEAR, 1, segment.stop - segment.start)


def _drop(made: ChosenSegments, reason: str, count: int, samples: int) -> None:
    before = made.dropped.get(reason, LeftOut())
    made.dropped[reason] = LeftOut(segments=before.segments + count, seconds=round(before.seconds + samples / RATE, 3))

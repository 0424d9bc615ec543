"""Segments as the rows of a plan: recordings are listed, examined a few at a time, and compared with each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from rayssl.data import listing
from rayssl.data.segments.examined import Examination, examine
from rayssl.data.segments.selection import ChosenSegments
from rayssl.data.shards import Reject
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource, others_found
from rayssl.data.units import PrepareWork
from rayssl.errors import CorpusError

_TASKS, _MOST = 512, 64  # about how many tasks to make of short recordings, and the most recordings in one
_ROWS = 1 << 12

Examined = tuple[Sequence[Reference], Sequence[Examination]]


def asked(work: PrepareWork) -> list[list[Reference]]:
    """All recordings, a few for each task. Raises `CorpusError` if there are none, or two have the same name."""
    source = CheckedSource(work.settings.source)
    found = [reference for part in source.parts() for chunk in source.list_chunks(part) for reference in chunk]
    where = work.settings.source.describe()
    if work.settings.take is not None:
        found = work.settings.take.of(found)
    if not found:
        raise CorpusError(
            f"{where}: no recordings found{others_found(source.passed_over())}; correct the keys of the source"
        )
    found.sort(key=lambda reference: reference.name)
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise CorpusError(f"{where}: two recordings are named '{one.name}'; names must be unique")
    size = max(1, min(_MOST, len(found) // _TASKS))
    return [found[at : at + size] for at in range(0, len(found), size)]


def examined(work: PrepareWork, references: Sequence[Reference]) -> Iterator[Examined]:
    """What a task does, see `rayssl.data.segments.examined.examine`."""
    yield references, examine(work, references)


def examine_all(work: PrepareWork) -> Iterator[Examined]:
    """All recordings, one after the other in this process."""
    for references in asked(work):
        yield from examined(work, references)


def check(out: str, selection: ChosenSegments, most: float | None) -> None:
    """Raises `CorpusError` if too many recordings cannot be used, or none of the others has a segment to keep.

    ``out``: the corpus, for messages. ``most``: the largest share of unusable recordings, 0.01 if it is not given.
    """
    unusable, count = selection.unusable, len(selection.references)
    most = 0.01 if most is None else most
    if len(unusable) / count > most:
        first, reason = min(unusable.items())
        raise CorpusError(
            f"{out}: {len(unusable)} of {count} recordings ({len(unusable) / count:.1%}) cannot be used, first "
            f"'{selection.references[first].name}' ({reason}); fix them or raise max_reject_share (now {most:g})"
        )
    if all(segment.reason for segment in selection.segments):
        reasons = ", ".join(f"{lost.seconds:.1f} s {reason}" for reason, lost in sorted(selection.dropped.items()))
        raise CorpusError(
            f"{out}: no segment is left of {count} recordings ({reasons}); lower segments.min_s or segments.threshold"
        )


def rejects(work: PrepareWork, selection: ChosenSegments) -> list[Reject]:
    """The recordings that cannot be used."""
    source, references = CheckedSource(work.settings.source), selection.references
    unusable = selection.unusable.items()
    return [
        Reject(name=references[k].name, source=source.place(references[k]), reason=reason) for k, reason in unusable
    ]


def rows(work: PrepareWork, selection: ChosenSegments) -> Iterator[pa.RecordBatch]:
    """The kept segments, as `rayssl.data.listing.list_rows` gives utterances."""
    references, groups = list[Reference](), list[str]()
    for reference, group in selection.kept():
        references.append(reference)
        groups.append(group)
        if len(references) == _ROWS:
            yield listing.rows(work.settings, work.seed, references, groups)
            references, groups = [], []
    if references:
        yield listing.rows(work.settings, work.seed, references, groups)

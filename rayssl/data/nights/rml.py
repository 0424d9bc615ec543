"""RML, the label files of Philips Sleepware that PSG-Audio has: sessions with their time, and stages.

What is read of it::

    PatientStudy/Acquisition/Sessions/Session/{RecordingStart, Duration, Segments/Segment/Duration}
    PatientStudy/ScoringData/StagingData/{UserStaging, MachineStaging}/*/Stage[@Type, @Start]

A stage begins at ``Start`` seconds after the first session's ``RecordingStart``. It lasts until the next one begins;
the last one lasts until the end of the last session. A file that was cut off gives the stages before the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal
from xml.etree import ElementTree
from xml.parsers import expat

from rayssl.data.decode import DecodeError
from rayssl.data.nights import stages
from rayssl.data.nights.scorings import Scoring, scoring
from rayssl.data.sources.nights import EPOCH_S, UNSCORED

Staging = Literal["user", "machine", "any"]

_ELEMENTS = {"user": ("UserStaging",), "machine": ("MachineStaging",), "any": ("UserStaging", "MachineStaging")}


def from_rml(file: str, data: bytes, staging: Staging = "user") -> Scoring | None:
    """The stages that a person (``user``) or the software (``machine``) scored; ``any``: a person's if there are some.

    Returns:
        None if the file has no stages at all. If there are only those of the other kind, every stage is `UNSCORED`, and
        a note says so.

    Raises:
        DecodeError: it is no RML, it defines entities or a document type, or it does not say when it begins.
    """
    root, cut = _tree(file, data)
    begins, length = _sessions(file, root)
    held = {kind: _points(root, kind) for kind in ("UserStaging", "MachineStaging")}
    kind = next((kind for kind in _ELEMENTS[staging] if held[kind]), None)
    if kind is None:
        other = next((kind for kind in held if held[kind]), None)
        if other is None and cut is None:
            return None
        if other is None:
            raise DecodeError(f"unreadable: {file} is cut off at line {cut}, before any stage")
        word = "machine" if other == "MachineStaging" else "user"
        note = f"unscored: {file} has only {other}; set the source's staging to '{word}' or 'any' to take it"
        return scoring(file, begins, [(0.0, max(length, EPOCH_S), UNSCORED)], [note])
    found: list[tuple[float, None, int]] = []
    unknown: list[str] = []
    for start, name in held[kind]:
        stage = stages.stage(name)
        unknown += [] if stage is not None else [f"'{name}'"]
        found.append((start, None, UNSCORED if stage is None else stage))
    last = max(start for start, _, _ in found)
    notes = [f"unscored: {file} has unknown stages: {', '.join(dict.fromkeys(unknown))}"] if unknown else []
    if cut is not None:
        notes.append(f"unscored: {file} is cut off at line {cut}; stages after second {last + EPOCH_S:g} are unknown")
        length = 0.0
    ends = length if length > last else last + EPOCH_S
    return scoring(file, begins, [(start, ends if start == last else None, stage) for start, _, stage in found], notes)


def _tree(file: str, data: bytes) -> tuple[ElementTree.Element, int | None]:
    """The root, and the line where the file was cut off; None if it is whole. A document type is refused."""
    builder, open_tags = ElementTree.TreeBuilder(), list[str]()
    parser = expat.ParserCreate(namespace_separator="}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        open_tags.append(tag)
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        open_tags.pop()
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DecodeError(f"refused: {file} defines a document type; RML has none, and it can expand without end")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = refuse
    cut = None
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        whole = (expat.errors.XML_ERROR_NO_ELEMENTS, expat.errors.XML_ERROR_UNCLOSED_TOKEN)
        ended = (*whole, expat.errors.XML_ERROR_PARTIAL_CHAR, expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION)
        text = expat.errors.messages[error.code]
        if not open_tags or text not in ended:
            raise DecodeError(f"unreadable: {file} is not XML: {text} in line {error.lineno}") from None
        cut = error.lineno
        while open_tags:
            builder.end(open_tags.pop())
    return builder.close(), cut


def _named(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """All elements of that name below ``root``, in any namespace."""
    return (one for one in root.iter() if one.tag.rpartition("}")[2] == name)


def _sessions(file: str, root: ElementTree.Element) -> tuple[datetime, float]:
    """When the first session begins, and how many seconds later the last one ends."""
    found = []
    for session in _named(root, "Session"):
        at = next((one.text for one in session if one.tag.rpartition("}")[2] == "RecordingStart"), None)
        own = [one.text for one in session if one.tag.rpartition("}")[2] == "Duration"]
        texts = own or [one.text for segment in _named(session, "Segment") for one in _named(segment, "Duration")]
        try:
            begins = datetime.fromisoformat((at or "").strip()).replace(tzinfo=None)
            found.append((begins, sum(float(text or "") for text in texts)))
        except ValueError:
            said = f"RecordingStart '{at}' and Duration {texts}"
            raise DecodeError(f"unreadable: {file} has a session with {said}, which is no time and seconds") from None
    if not found:
        raise DecodeError(f"unreadable: {file} has no Session with a RecordingStart; it cannot be placed in time")
    first = min(begins for begins, _ in found)
    return first, max((begins - first).total_seconds() + seconds for begins, seconds in found)


def _points(root: ElementTree.Element, kind: str) -> list[tuple[float, str]]:
    """(second, name) of each stage of the first element ``kind`` with stages, in order."""
    for staging in _named(root, kind):
        made = []
        for one in _named(staging, "Stage"):
            try:
                made.append((float(one.get("Start", "")), one.get("Type", "")))
            except ValueError:
                continue  # a stage that begins nowhere: what stands before it goes on
        if made:
            return sorted(made, key=lambda point: point[0])
    return []

"""Stages from RML."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from rayssl.data.decode import DecodeError
from rayssl.data.nights.rml import Staging, from_rml
from rayssl.data.nights.scorings import Scoring
from rayssl.data.sources.nights import UNSCORED
from tests.data.nights.edf_files import START, rml


def read(text: str, staging: Staging = "user") -> Scoring:
    found = from_rml("a.rml", text.encode(), staging)
    assert found is not None
    return found


def test_stages_are_change_points() -> None:
    points = [(0.0, "NotScored"), (30.0, "Wake"), (90.0, "NonREM1"), (120.0, "NonREM4"), (300.0, "REM")]
    found = read(rml(points, seconds=420.5))
    assert found.clock == START and found.notes == ()
    assert found.onsets.tolist() == [0, 30, 90, 120, 300] and found.ends.tolist() == [30, 90, 120, 300, 420.5]
    assert found.stages.tolist() == [UNSCORED, 0, 1, 2, 3]
    assert [found.stage(30 * k) for k in range(14)] == [UNSCORED, 0, 0, 1, *[2] * 6, *[3] * 4]
    assert found.stage(420) == UNSCORED and found.stage(-30) == UNSCORED


def test_the_order_and_the_namespace_do_not_matter() -> None:
    text = rml([(60, "REM"), (0, "Wake")])
    assert (
        read(text).stages.tolist()
        == read(text.replace(' xmlns="http://www.respironics.com/PatientStudy.xsd"', "")).stages.tolist()
        == [0, 3]
    )


def test_machine_staging_is_taken_if_asked() -> None:
    both = rml([(0, "Wake")], machine=[(0, "REM")])
    kinds: list[Staging] = ["user", "machine", "any"]
    assert [read(both, kind).stages.tolist() for kind in kinds] == [[0], [3], [0]]
    machine = rml([], machine=[(0, "REM")])
    assert [read(machine, kind).stages.tolist() for kind in kinds] == [[UNSCORED], [3], [3]]
    assert "staging to 'machine' or 'any'" in read(machine).notes[0]
    assert "only UserStaging" in read(rml([(0, "Wake")]), "machine").notes[0]
    assert from_rml("a.rml", rml([]).encode(), "any") is None


def test_an_unknown_stage_is_unscored_and_named() -> None:
    found = read(rml([(0, "Wake"), (60, "Hibernation")]))
    assert found.stages.tolist() == [0, UNSCORED] and found.notes == (
        "unscored: a.rml has unknown stages: 'Hibernation'",
    )


def test_several_sessions() -> None:
    later = (START + timedelta(hours=2)).isoformat()
    session = f"<Session><RecordingStart>{later}</RecordingStart><Segments>"
    session += (
        "<Segment><Duration>600</Duration></Segment><Segment><Duration>300</Duration></Segment></Segments></Session>"
    )
    found = read(rml().replace("<Sessions>", f"<Sessions>{session}"))
    assert found.clock == START and found.ends[-1] == 7200 + 900


def test_a_time_zone_is_passed_over() -> None:
    text = rml().replace(START.isoformat(), START.isoformat() + "+02:00")
    assert read(text).clock == datetime(2019, 3, 1, 22, 15)


@pytest.mark.parametrize("where", ["in a tag", "between tags", "in a text"])
def test_what_stands_before_a_cut_counts(where: str) -> None:
    text = rml()
    at = {"in a tag": text.index('Start="120"') + 3, "between tags": text.index('<Stage Type="NonREM3"')}.get(where)
    if at is None:
        text = text.replace("</UserStaging>", "</UserStaging><Comment>half a text")
        found = read(text[: text.index("half a text") + 4])
        assert found.ends.tolist() == [60, 120, 180, 210] and "second 210 are unknown" in found.notes[0]
        return
    found = read(text[:at])
    assert found.ends.tolist() == [60, 90] and found.stages.tolist() == [0, 1]
    (note,) = found.notes
    assert note.startswith("unscored: a.rml is cut off at line 5") and "second 90 are unknown" in note


def test_a_document_type_is_refused() -> None:
    """Ten levels of entities are 10^9 times a word: nothing of them is expanded."""
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [{entities}]><PatientStudy>&a9;</PatientStudy>'
    for data in (bomb.encode(), bomb.replace("1.0", '1.0" encoding="utf-16').encode("utf-16")):
        with pytest.raises(DecodeError, match=r"refused: a\.rml defines a document type"):
            from_rml("a.rml", data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"unreadable: a\.rml is not XML: no element found in line 1"),
        ("stage,onset\nW,0", r"unreadable: a\.rml is not XML: syntax error"),
        ("<a><b></a>", r"unreadable: a\.rml is not XML: mismatched tag"),
        ("<a></a>", r"unreadable: a\.rml has no Session with a RecordingStart"),
        (rml().replace("2019-03-01", "yesterday"), r"a session with RecordingStart 'yesterdayT22:15:00'"),
        (rml()[: rml().index("<Stage ")], r"unreadable: a\.rml is cut off at line 5, before any stage"),
    ],
)
def test_faults_are_one_line(text: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        from_rml("a.rml", text.encode())
    assert "\n" not in str(caught.value)

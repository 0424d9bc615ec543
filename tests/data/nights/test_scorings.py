"""Hypnograms as CSV and TXT, and stages among annotations."""

from __future__ import annotations

import itertools
import re
from datetime import datetime

import numpy as np
import pytest

from rayssl.data.decode import DecodeError
from rayssl.data.nights.edf import Annotation
from rayssl.data.nights.scorings import Scoring, from_annotations, from_csv, from_lines, scoring
from rayssl.data.sources.nights import UNSCORED

CLOCK = datetime(2019, 3, 1, 22, 15)


def intervals(found: Scoring) -> list[tuple[float, float, int]]:
    return list(zip(found.onsets.tolist(), found.ends.tolist(), found.stages.tolist(), strict=True))


def test_lines() -> None:
    found = from_lines("a.txt", "\ufeffW\n\n# break\nN2\r\n?\n")
    assert intervals(found) == [(0, 30, 0), (30, 60, 1), (60, 90, UNSCORED)] and found.clock is None


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_columns(mark: str) -> None:
    text = "Onset,Duration,Stage\n30,30,W\n60,60,N3\n150,,REM\n".replace(",", mark)
    assert intervals(from_csv("a.csv", text)) == [(30, 60, 0), (60, 120, 2), (150, 180, 3)]
    assert intervals(from_csv("a.csv", "stage,start\nW,0\nN1,90\n")) == [(0, 90, 0), (90, 120, 1)]


@pytest.mark.parametrize("first", [0, 1])
def test_epochs_count_from_0_or_1(first: int) -> None:
    text = "epoch,stage\n" + "".join(f"{first + k},{stage}\n" for k, stage in enumerate("W2R"))
    assert intervals(from_csv("a.csv", text)) == [(0, 30, 0), (30, 60, 1), (60, 90, 3)]


def test_times_of_day_pass_midnight() -> None:
    found = from_csv("a.csv", "onset,stage\n23:59:00,W\n23:59:30,N1\n00:00:30,R\n")
    assert intervals(found) == [(0, 30, 0), (30, 90, 1), (90, 120, 3)]
    assert found.clock is not None and (found.clock.year, found.clock.hour, found.clock.minute) == (1, 23, 59)
    found = from_csv("a.csv", "onset,stage\n2019-03-01 23:59:00,W\n2019-03-02T00:00:00,R\n")
    assert intervals(found) == [(0, 60, 0), (60, 90, 3)] and found.clock == datetime(2019, 3, 1, 23, 59)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no scoring: a.csv is empty"),
        ("onset,stage\n", "no scoring: a.csv has no stages"),
        ("onset,kind\n0,W\n", "a.csv: line 1: needs the columns onset and stage, or epoch and stage (onset, kind)"),
        ("onset,stage\n0,W\n30,Q\n", "a.csv: line 3: 'Q' is not the name of a sleep stage"),
        ("onset,stage\nx,W\n", "a.csv: line 2: 'x' is not a number"),
        ("onset,stage\nnan,W\n", "a.csv: line 2: 'nan' is not a number"),
        ("onset,stage\n1:x,W\n", "a.csv: line 2: '1:x' is not a time"),
        ("onset,stage\n0,W\n23:00:00,W\n", "a.csv: its onsets are partly seconds and partly times"),
        ("onset,stage,duration\n0,W,long\n", "a.csv: line 2: 'long' is not a number"),
    ],
)
def test_faults_name_the_line(text: str, message: str) -> None:
    with pytest.raises(DecodeError, match=re.escape(message)):
        from_csv("a.csv", text)


def test_faults_of_lines_name_the_line() -> None:
    with pytest.raises(DecodeError, match=r"a\.txt: line 3: 'snore' is not the name of a sleep stage"):
        from_lines("a.txt", "W\n\nsnore\n")
    with pytest.raises(DecodeError, match=r"no scoring: a\.txt has no stages"):
        from_lines("a.txt", "# nothing\n")


def test_texts_that_say_sleep_stage_are_the_stages() -> None:
    told = [Annotation(0, 30, "Sleep stage W"), Annotation(10, 5, "A"), Annotation(30, 30, "Sleep stage N2")]
    found = from_annotations("a.edf", told, CLOCK)
    assert found is not None and intervals(found) == [(0, 30, 0), (30, 60, 1)] and found.notes == ()
    found = from_annotations("a.edf", [*told, Annotation(60, 30, "Sleep stage Q")], CLOCK)
    assert found is not None and found.stages.tolist() == [0, 1, UNSCORED]
    assert found.notes == ("unscored: a.edf has unknown stages: 'Sleep stage Q'",)
    found = from_annotations(
        "a.edf", [Annotation(0, None, "W"), Annotation(90, None, "1"), Annotation(5, 5, "Apnea")], CLOCK
    )
    assert found is not None and intervals(found) == [(0, 90, 0), (90, 120, 1)]
    assert from_annotations("a.edf", [Annotation(0, 5, "Apnea"), Annotation(3, None, "")], CLOCK) is None


def test_a_stage_lasts_until_the_next_begins() -> None:
    assert intervals(scoring("a", None, [(60, 90, 2), (0, 100, 1), (30, None, 0)])) == [
        (0, 30, 1),
        (30, 60, 0),
        (60, 90, 2),
    ]


def test_an_epoch_has_the_stage_that_fills_most_of_it() -> None:
    """Against a count of tenths of a second, for scorings in steps of 20 s and for moved boundaries."""
    draws = np.random.default_rng(0)
    for _ in range(20):
        edges = np.cumsum(draws.integers(5, 60, 12)) * 1.0
        given = [(float(a), float(b), int(draws.integers(-1, 4))) for a, b in itertools.pairwise(edges)]
        given = [one for one in given if draws.random() < 0.8] or given
        found = scoring("a", None, given)
        for start in np.arange(-40, edges[-1] + 40, 7.5):
            counts: dict[int, int] = {}
            for second in start + 0.05 + np.arange(300) / 10:
                for begin, end, stage in given:
                    if begin <= second < end:
                        counts[stage] = counts.get(stage, 0) + 1
            most = max(counts.values(), default=0)
            best = {stage for stage, count in counts.items() if count == most and count >= 150} or {UNSCORED}
            assert found.stage(float(start)) in best

"""The names of stages in public formats."""

from __future__ import annotations

import pytest

from rayssl.data.nights.stages import has_prefix, stage
from rayssl.data.sources.nights import STAGES, UNSCORED

NAMES = {
    "Wake": ["W", "Wake", "wake", "Sleep stage W", "SLEEP-S0", "0", "S0", "Stage W", " W ", "AWAKE"],
    "Light": ["N1", "N2", "NonREM1", "NonREM2", "NREM 1", "Sleep stage N2", "Sleep stage 1", "2", "S1", "SLEEP-S2"],
    "Deep": ["N3", "NonREM3", "NonREM4", "Sleep stage 3", "Sleep stage 4", "4", "S4", "SLEEP-S3", "SWS", "Deep"],
    "REM": ["R", "REM", "rem", "Sleep stage R", "SLEEP-REM", "5", "Stage REM"],
    "": [
        "?",
        "Sleep stage ?",
        "NotScored",
        "unscored",
        "",
        "Movement time",
        "Sleep stage M",
        "MT",
        "9",
        "-1",
        "SLEEP-MT",
    ],
}


@pytest.mark.parametrize(
    ("expected", "name"), [(expected, name) for expected, names in NAMES.items() for name in names]
)
def test_names(expected: str, name: str) -> None:
    assert stage(name) == (STAGES.index(expected) if expected else UNSCORED)


@pytest.mark.parametrize(
    "name", ["Lights off", "sleep", "stage", "Sleep stage", "Hypopnea", "N5", "REM1", "W1", "10", "Q"]
)
def test_other_texts_are_no_stages(name: str) -> None:
    assert stage(name) is None


def test_prefixes() -> None:
    assert [has_prefix(name) for name in ("Sleep stage W", "SLEEP-S2", "Stage 1", "W", "Sleep", "Lights off")] == [
        *[True] * 3,
        *[False] * 3,
    ]

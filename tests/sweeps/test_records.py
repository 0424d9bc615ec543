"""Records of trials: written, read back, compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.errors import UserError
from rayssl.sweeps import records
from rayssl.sweeps.records import Rung, TrialRecord


def record(index: int, *values: float, state: str = "running") -> TrialRecord:
    rungs = [Rung(epoch=epoch, value=value, seconds=2.5) for epoch, value in enumerate(values, start=1)]
    return TrialRecord(index=index, point={"a.b": 1}, state=state, rungs=rungs)  # type: ignore[arg-type]


def test_they_are_read_back(tmp_path: Path) -> None:
    kept = {10: record(10, 0.5, 0.4), 2: record(2, state="failed").at(reason="line")}
    for index, each in kept.items():
        records.write(str(tmp_path / "trials" / f"{index:04d}"), each)
    (tmp_path / "trials/0003/evaluation").mkdir(parents=True)
    (tmp_path / "trials/0003/evaluation/result.json").write_text("{}")
    found = records.read_all(str(tmp_path))
    assert list(found) == [2, 10] and found == kept
    assert (found[10].epochs, found[10].value, found[10].seconds) == (2, 0.4, 5.0)
    assert (found[2].epochs, found[2].value) == (0, None)
    assert records.read_all(str(tmp_path / "nothing")) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"index": 1', '{"index": "x", "point": {}}', '{"index": 1, "point": 3}'])
def test_a_damaged_one_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trials/0001/trial.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"trials/0001/trial\.json"):
        records.read_all(str(tmp_path))


def test_halving_lets_the_best_of_those_so_far_go_on() -> None:
    """Best 1/3, at least one: the first always, the second only if it is better."""
    assert records.continues(0.5, [0.5], 3, "min")
    assert not records.continues(0.6, [0.5, 0.6], 3, "min")
    assert records.continues(0.6, [0.5, 0.6], 3, "max")
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [records.continues(value, values, 3, "min") for value in values] == [True, True, False, False, False, False]
    assert [records.continues(value, values, 2, "max") for value in values] == [False, False, False, True, True, True]
    assert records.continues(0.1, [0.1, 0.1], 3, "min")  # equals are not parted


def test_ranking_compares_trials_that_came_as_far() -> None:
    trained, short = record(0, 0.5, 0.4, state="finished"), record(1, 0.2, state="stopped")
    better, failed = record(2, 0.6, 0.3, state="finished"), record(3, 0.1, 0.1, state="failed")
    nothing = record(4)
    every = [nothing, failed, short, trained, better]
    assert [each.index for each in records.ranked(every, "min")] == [2, 0, 1, 4, 3]
    assert [each.index for each in records.ranked(every, "max")] == [0, 2, 1, 4, 3]
    assert records.best(every, "min") == better
    assert records.best([failed, nothing], "min") is None

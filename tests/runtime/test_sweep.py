"""How many trials run at once, and how their errors are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.errors import CorpusError
from rayssl.evaluation.verification import Result
from rayssl.experiment.config import Experiment
from rayssl.runtime.evaluation import evaluate
from rayssl.runtime.sweep import trial as trials
from rayssl.runtime.sweep.run import room
from rayssl.runtime.sweep.trial import reason
from tests.small_experiment import tree

GB = 1e9


def trial(tmp_path: Path, **changes: Any) -> Experiment:
    return Experiment(**tree(str(tmp_path), **changes))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 8}], 2),  # two ranks, a tenth for the memory, one for reading
        ([{"CPU": 3}], 0),
        ([{"CPU": 3.5}, {"CPU": 3.5}], 2),
        ([{"CPU": 0.5}] * 20, 0),  # no rank fits anywhere
        ([{"CPU": 64, "GPU": 8}], 4),
        ([{"CPU": 64, "GPU": 1}], 20),  # too few for one trial, which then trains on CPUs
    ],
)
def test_as_many_trials_at_once_as_have_room(tmp_path: Path, nodes: list[dict[str, float]], expected: int) -> None:
    assert room(trial(tmp_path), nodes) == expected


def test_memories_that_reserve_bytes_go_where_they_fit(tmp_path: Path) -> None:
    settings = trial(tmp_path, memory={"memory_bytes": int(10 * GB)})
    assert room(settings, [{"CPU": 64, "memory": 8 * GB}, {"CPU": 4, "memory": 20 * GB}]) == 2
    sharded = trial(tmp_path, memory={"memory_bytes": int(10 * GB), "shards": 2})
    assert room(sharded, [{"CPU": 64, "memory": 8 * GB}, {"CPU": 4, "memory": 20 * GB}]) == 1


@pytest.mark.parametrize(
    ("errors", "tries"), [([], 1), ([OSError("no place")], 2), ([OSError("no place")] * 9, 4), ([CorpusError("x")], 1)]
)
def test_an_evaluation_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], tries: int
) -> None:
    """After what Ray may do, as often as training would be; a mistake of the user is reported at once."""
    left, made = list(errors), []

    def once(run: str) -> Result:
        made.append(run)
        if left:
            raise left.pop()
        return Result(eer=0.25, min_dcf_001=0.9, min_dcf_005=0.8, trials=10, targets=5)

    monkeypatch.setattr(evaluate, "evaluate", once)
    monkeypatch.setattr(trials, "_PAUSE_S", 0.0)
    settings = trial(tmp_path)
    if tries in (4, 1) and errors:
        with pytest.raises(type(errors[0])):
            trials.evaluate_with_retries(settings)
    else:
        assert trials.evaluate_with_retries(settings)["eer"] == 0.25
    assert made == [settings.run] * tries


def test_a_reason_is_one_line() -> None:
    outer = RuntimeError("Ray's own words\nand a traceback")
    outer.__cause__ = CorpusError("there: damaged audio; prepare it again")
    assert reason(outer) == "there: damaged audio; prepare it again"
    assert reason(ValueError("\n  bad value\nat a place")) == "ValueError: bad value"
    assert reason(MemoryError()) == "MemoryError"

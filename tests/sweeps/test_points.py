"""Points are drawn from the seed: again the same, within their space, and more trials only add to them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rayssl.errors import ConfigError
from rayssl.sweeps import points
from rayssl.sweeps.config import SweepConfig
from rayssl.sweeps.records import Rung, TrialRecord
from tests.sweeps.plans import sweep_tree

SPACE = {
    "method.clusters": {"choices": [4, 8, 16]},
    "method.over.temperature": {"low": 0.05, "high": 0.5, "log": True},
    "method.queue": {"low": 0, "high": 3, "integer": True},
    "training.optimiser.lr": {"low": 0.001, "high": 0.002},
}


def config(**changes: Any) -> SweepConfig:
    return SweepConfig(**sweep_tree(Path("here"), **{"space": SPACE, "trials": 40, **changes}))


def inside(point: dict[str, Any]) -> bool:
    return (
        point["method.clusters"] in (4, 8, 16)
        and 0.05 <= point["method.over.temperature"] <= 0.5
        and type(point["method.queue"]) is int
        and 0 <= point["method.queue"] <= 3
        and 0.001 <= point["training.optimiser.lr"] <= 0.002
    )


def test_random_points() -> None:
    drawn = points.drawn(config())
    assert all(inside(point) for point in drawn)
    assert {point["method.queue"] for point in drawn} == {0, 1, 2, 3}
    below = sum(point["method.over.temperature"] < 0.158 for point in drawn)  # half of a logarithmic range
    assert 10 <= below <= 30
    assert points.drawn(config()) == drawn
    assert points.drawn(config(trials=7)) == drawn[:7]
    assert points.drawn(config(seed=1)) != drawn
    written = [point["method.over.temperature"] for point in drawn]
    assert written == [float(f"{value:.4g}") for value in written]


def test_random_points_repeat_none_while_there_are_others() -> None:
    few = {"method.clusters": {"choices": [4, 8]}, "method.queue": {"choices": [0, 1, 2]}}
    drawn = points.drawn(config(space=few, trials=6))
    assert len({str(point) for point in drawn}) == 6
    assert len(points.drawn(config(space=few, trials=8))) == 8


def test_grid_is_all_combinations_once() -> None:
    few = {"method.clusters": {"choices": [4, 8]}, "training.precision": {"choices": ["fp32", "bf16"]},
           "views.x": {"choices": [[1, 2], [3, 4], [5, 6]]}}  # fmt: skip
    whole = config(space=few, search="grid", trials=None)
    assert points.count(whole) == 12
    assert len({str(point) for point in points.drawn(whole)}) == 12
    part = config(space=few, search="grid", trials=5)
    assert points.count(part) == 5 and points.drawn(part) == points.drawn(whole)[:5]
    assert points.count(config(space=few, search="grid", trials=100)) == 12


def record(index: int, value: float, state: str = "finished", **point: Any) -> TrialRecord:
    point = {"method.clusters": 8, "method.queue": 1, "training.optimiser.lr": 0.0015, **point}
    return TrialRecord(index=index, state=state, point=point, rungs=[Rung(epoch=3, value=value)])  # type: ignore[arg-type]


def test_optuna_learns_from_records_and_repeats_itself() -> None:
    settings = config(search="optuna")
    first = points.suggested(settings, 0, [])
    assert inside(first) and points.suggested(settings, 0, []) == first != points.suggested(settings, 1, [])
    low = [record(k, 0.1 + 0.02 * k, **{"method.over.temperature": 0.05 + 0.015 * k}) for k in range(25)]
    told = [*low, record(25, 0.9, "stopped", **{"method.over.temperature": 0.4})]
    told += [record(26, 0.9, "failed", **{"method.over.temperature": 0.41})]
    told += [record(27, 0.9, "running", **{"method.over.temperature": 0.07})]
    asked = [points.suggested(settings, index, told) for index in range(28, 40)]
    assert asked[0] == points.suggested(settings, 28, reversed(told))
    assert all(inside(point) for point in asked)
    assert sum(point["method.over.temperature"] < 0.2 for point in asked) > 8  # half by chance


def test_optuna_that_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'rayssl\[sweep\]'"):
        points.suggested(config(search="optuna"), 0, [])

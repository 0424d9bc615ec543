"""A population: trials advance together, the worst become copies of the best, and a driver may end anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.sweeps import points
from rayssl.sweeps.population import Population
from rayssl.sweeps.records import Rung
from rayssl.training import checkpoint
from tests.sweeps.plans import SPACE, plan

PBT = {"scheduler": {"name": "pbt", "every": 1, "quantile": 0.34}}


class Drivers:
    """Trials whose metric sums what their temperature was in each epoch, kept in checkpoints as weights would be."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.plan, self.lines = plan(folder, **{**PBT, "trials": 4, **changes}), list[str]()

    def state(self, **how: Any) -> Population:
        state = Population(self.plan, self.lines.append, **how)
        state.begin()
        return state

    def run(self, state: Population, steps: int = 1000, fails: int | None = None) -> int:
        """Trains one stretch after the other, at most ``steps``; trial ``fails`` does not."""
        for done in range(steps):
            found = state.next()
            if found is None:
                assert not state.waiting and not state.left
                return done
            record, experiment = found
            if record.index == fails:
                state.failed(record.index, "no")
                continue
            (epoch,) = state.rungs_left(record, experiment)
            run, temperature = self.plan.run(record.index), record.point["method.over.temperature"]
            known = checkpoint.steps(run)
            before = checkpoint.load(checkpoint.locate(run, "last")) if known else None
            value = temperature + (0.0 if before is None else float(before.state["sum"]))
            meta = checkpoint.Meta(10 * epoch, epoch, 0, "none", {"loss": value})
            checkpoint.save(run, meta, {"sum": torch.tensor(value, dtype=torch.float64)}, None)
            assert not state.reached(record.index, Rung(epoch=epoch, value=value), experiment.training.epochs)
        return steps


def test_the_worst_resumes_from_the_best(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path)
    state = drivers.state()
    assert state.left == 4 * 3
    assert drivers.run(state) == 12
    records = list(state.records.values())
    assert [record.state for record in records] == ["finished"] * 4
    assert all([rung.epoch for rung in record.rungs] == [1, 2, 3] for record in records)
    taken = [(each.epoch, each.source, record.index) for record in records for each in record.taken]
    assert sorted(epoch for epoch, _, _ in taken) == [1, 2]  # a third of four, after each of two epochs
    for epoch, source, index in taken:
        values = {record.index: record.rungs[epoch - 1].value for record in records}
        assert values[source] == min(values.values()) and values[index] == max(values.values())
        following = state.records[index].rungs[epoch].value - values[source]
        assert 0.05 <= following <= 0.5  # of the donor's weights, with a temperature of its own
    assert any("resumes from trial" in line and "method.over.temperature=" in line for line in drivers.lines)
    state.write()
    best = state.result()["trials"][0]
    text = (tmp_path / "sweep/best.yaml").read_text()
    assert ("changed on the way" in text) == bool(best["taken"])


@pytest.mark.parametrize("steps", [4, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 3, 5, 7))])
def test_a_driver_that_ends_changes_nothing(tmp_path: Path, steps: int) -> None:
    whole, parts = Drivers(tmp_path / "a"), Drivers(tmp_path / "b")
    state, done = whole.state(), 0
    total = whole.run(state)
    while (again := parts.state()).left:
        done += parts.run(again, steps)
    assert done == total and list(again.records.values()) == list(state.records.values())


def test_a_driver_that_ends_while_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is half there: the next driver makes it again, of the same trial and with the same values."""
    whole, parts = Drivers(tmp_path / "a"), Drivers(tmp_path / "b")
    state = whole.state()
    whole.run(state)
    first = parts.state()
    parts.run(first, 4)
    real = checkpoint.take_over

    def half(source: str, run: str) -> str:
        uri = real(source, run)
        (Path(uri) / "meta.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "take_over", half)
    with pytest.raises(KeyboardInterrupt):
        first.next()
    monkeypatch.undo()
    again = parts.state()
    parts.run(again)
    assert list(again.records.values()) == list(state.records.values())


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path, trials=2)
    state = drivers.state()
    one, other = state.next(), state.next()
    assert one is not None and other is not None and state.next() is None and state.waiting
    state.failed(one[0].index, "no")
    assert state.next() is None and state.waiting
    assert not state.reached(other[0].index, Rung(epoch=1, value=0.1), 3)
    following = state.next()
    assert following is not None and following[0].index == other[0].index  # alone, it takes from nobody
    assert state.rungs_left(*following) == [2]


def test_one_that_failed_catches_up_before_the_others_continue(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path)
    state = drivers.state()
    drivers.run(state, 6, fails=2)
    assert state.records[2].state == "failed" and state.left == sum(3 - state._epochs(k) for k in (0, 1, 3))
    again = drivers.state(retry_failed=True)
    found = again.next()
    assert found is not None and found[0].index == 2 and again.rungs_left(*found) == [1]
    again.failed(2, "again")
    drivers.run(again)
    assert [record.state for record in again.records.values()] == ["finished", "finished", "failed", "finished"]


def test_a_perturbed_point_is_near(tmp_path: Path) -> None:
    space = {**SPACE, "method.queue": {"low": 0, "high": 100, "integer": True}}
    config = plan(tmp_path, **PBT, space=space).config
    point = {"method.clusters": 8, "method.over.temperature": 0.1, "method.queue": 50}
    made = [points.perturbed(config, point, np.random.default_rng(seed)) for seed in range(60)]
    assert made[0] == points.perturbed(config, point, np.random.default_rng(0))
    near = [each for each in made if each["method.over.temperature"] in (0.12, 0.08333)]
    assert 35 < len(near) < 60
    assert {each["method.queue"] for each in made} > {40, 60}
    edge = {"method.clusters": 16, "method.over.temperature": 0.5, "method.queue": 0}
    for seed in range(20):
        far = points.perturbed(config, edge, np.random.default_rng(seed))
        assert far["method.clusters"] in (4, 8, 16) and far["method.over.temperature"] <= 0.5
        assert 0 <= far["method.queue"] <= 100

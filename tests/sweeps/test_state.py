"""The state of a sweep: a driver may end anywhere, and the next one comes to the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.schema import load_yaml, parse
from rayssl.sweeps.records import Rung
from rayssl.sweeps.state import SweepState, table
from tests.sweeps.plans import plan


class Drivers:
    """Starts the same sweep again and again, with trials whose metric is a function of point and epoch."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.plan, self.lines = plan(folder, **changes), list[str]()

    def state(self, **how: Any) -> SweepState:
        state = SweepState(self.plan, self.lines.append, **how)
        state.begin()
        return state

    def run(self, state: SweepState, steps: int = 1000) -> int:
        """Trains one trial after the other, at most ``steps`` rungs; how many it was."""
        done = 0
        while done < steps and (found := state.next()) is not None:
            record, experiment = found
            for epoch in state.rungs_left(record, experiment):
                if done == steps:
                    return done
                done += 1
                if not state.reached(record.index, rung(record.point, epoch), experiment.training.epochs):
                    break
        return done


def rung(point: dict[str, Any], epoch: int) -> Rung:
    return Rung(epoch=epoch, value=point["method.over.temperature"] / epoch, seconds=1.0)


def states(state: SweepState) -> list[tuple[str, int]]:
    return [(record.state, record.epochs) for record in state.records.values()]


def test_asha_stops_the_worse(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path, trials=6)
    state = drivers.state()
    drivers.run(state)
    assert len(state.records) == 6 and state.left == 0 and state.next() is None
    for record in state.records.values():
        assert record.state in ("finished", "stopped")
        assert record.epochs == 3 if record.state == "finished" else record.epochs in (1, 2)
    assert any(state == "stopped" for state, _ in states(state))
    assert any("stopped: place 2 of 2 after epoch 1" in line for line in drivers.lines)
    best = state.result()["trials"][0]
    assert best["state"] == "finished" and best["index"] == state.result()["best"]


@pytest.mark.parametrize("search", ["random", "optuna"])
@pytest.mark.parametrize("steps", [3, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 2, 5, 8))])
def test_a_driver_that_ends_changes_nothing(tmp_path: Path, search: str, steps: int) -> None:
    """After any number of rungs the next driver finds the same points, and lets the same trials continue."""
    whole, parts = Drivers(tmp_path / "a", search=search, trials=6), Drivers(tmp_path / "b", search=search, trials=6)
    state = whole.state()
    total = whole.run(state)
    done = 0
    for _ in range(100):
        again = parts.state()
        if not again.left:
            break
        done += parts.run(again, steps)
    assert done == total
    assert list(again.records.values()) == list(state.records.values())
    said = [line for line in parts.lines if "trial" in line]
    assert sorted(said) == sorted(whole.lines)


def test_what_a_trial_came_to_before_the_driver_ended_is_decided_by_the_next(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path)
    state = drivers.state()
    for _ in range(2):
        found = state.next()
        assert found is not None
    worse = max(state.records.values(), key=lambda record: record.point["method.over.temperature"])
    for record in list(state.records.values()):  # written, and nobody asked what follows from it
        state._keep(record.at(rungs=[rung(record.point, 1)]))
    again = drivers.state()
    assert again.records[worse.index].state == "stopped"
    assert again.left == 3  # the better one, and the two that were never started


def test_failures_are_told_and_tried_again_only_on_demand(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path, space={"method.over.temperature": {"choices": [0.1, 0.2]}}, search="grid")
    state = drivers.state()
    found = state.next()
    assert found is not None
    state.failed(found[0].index, "the loss is nan")
    drivers.run(state)
    assert f"trial {found[0].index}  failed: the loss is nan" in drivers.lines
    assert drivers.state().left == 0
    again = drivers.state(retry_failed=True)
    assert again.left == 1
    drivers.run(again)
    assert [record.state for record in again.records.values()].count("failed") == 0
    again.failed(0, "a process that is ended after its trial")
    assert again.records[0].state != "failed"


def test_values_that_do_not_go_together_are_a_failed_trial(tmp_path: Path) -> None:
    space = {"method.start_epoch": {"choices": [1, 3]}, "method.over.temperature": {"choices": [0.1]}}
    drivers = Drivers(tmp_path, space=space, search="grid")
    state = drivers.state()
    drivers.run(state)
    failed = [record for record in state.records.values() if record.state == "failed"]
    assert len(failed) == 1 and str(failed[0].reason).startswith("method.start_epoch=3 is not before training.epochs=3")


def test_more_trials_may_be_added_but_not_another_sweep(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path, trials=2)
    drivers.run(drivers.state())
    more = Drivers(tmp_path, trials=5)
    assert more.state().left == 3
    for changes, key in (
        ({"seed": 4}, "seed"),
        ({"metric": "loss"}, "metric"),
        ({"overrides": ["seed=9"]}, "experiment"),
    ):
        with pytest.raises(ConfigError, match=f"another {key}; put it back"):
            Drivers(tmp_path, **changes).state()


def test_what_is_written(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path)
    state = drivers.state()
    state.write()
    assert not (tmp_path / "sweep/best.yaml").exists()
    drivers.run(state)
    state.write()
    result = json.loads((tmp_path / "sweep/results.json").read_text())
    assert result["trials"][0]["index"] == result["best"]
    assert result["asked"] == 4 and set(result["space"]) == set(drivers.plan.config.space)
    text = (tmp_path / "sweep/best.yaml").read_text()
    best = parse(Experiment, load_yaml(text, "best.yaml"), "best.yaml")
    assert best.run == f"{tmp_path}/sweep/best"
    assert best.method.over.temperature == result["trials"][0]["point"]["method.over.temperature"]  # type: ignore[union-attr]
    assert f"# Command: rayssl train {tmp_path}/sweep/best.yaml" in text
    trial = yaml.safe_load((tmp_path / "sweep/trials/0000/config.yaml").read_text())
    assert trial["run"] == f"{tmp_path}/sweep/trials/0000"
    origin = json.loads((tmp_path / "sweep/trials/0000/origin.json").read_text())
    assert origin["origins"]["method.clusters"] == "override" and origin["origins"]["training.epochs"] == "file"


def test_table(tmp_path: Path) -> None:
    drivers = Drivers(tmp_path)
    state = drivers.state()
    drivers.run(state)
    head, first, *rest = table(state).splitlines()
    assert head.split() == ["rank", "trial", "clusters", "temperature", "eer", "epochs", "state"]
    assert first.split()[0] == "1" and first.split()[-2:] == ["3", "finished"] and len(rest) == 3

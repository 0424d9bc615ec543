"""The state of a sweep: which trial is next, which may continue, and what is written. Only its driver has it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import yaml

from rayssl import storage
from rayssl.errors import ConfigError, UserError
from rayssl.experiment.config import Experiment
from rayssl.runs.origin import commit, origins
from rayssl.runs.origin import record as record_run
from rayssl.schema import load_yaml
from rayssl.sweeps import points, records
from rayssl.sweeps.config import ASHAConfig, Point, SweepPlan, assignments, text
from rayssl.sweeps.records import Rung, TrialRecord

CONFIG, RESULTS, BEST = "sweep.yaml", "results.json", "best.yaml"


class SweepState:
    """All trials of ``plan``; those of an earlier start are read back. Raises `UserError` where the folder has another
    sweep.

    ``say`` gets a line whenever a trial is judged or fails. ``retry_failed``: failed trials are tried once more.
    """

    def __init__(self, plan: SweepPlan, say: Callable[[str], None], *, retry_failed: bool = False) -> None:
        self.plan, self.config, self._say = plan, plan.config, say
        _same_sweep(plan)
        self.records = records.read_all(plan.uri)
        self._new = [index for index in range(points.count(self.config)) if index not in self.records]
        self._points: list[Point] = [] if self.config.search == "optuna" else points.drawn(self.config)
        again = ("running", "failed") if retry_failed else ("running",)
        self._unfinished = [index for index, record in self.records.items() if record.state in again]
        for index in list(self._unfinished):
            self._settle(index)

    @property
    def left(self) -> int:
        """How many trials are still to be started."""
        return len(self._unfinished) + len(self._new)

    @property
    def waiting(self) -> bool:
        """Whether `next` will have more when a running trial is judged."""
        return False

    def begin(self) -> None:
        """Writes ``sweep.yaml``: the configuration, and what may not change."""
        tree = {"sweep": self.config.model_dump(mode="json"), "fixed": self.plan.fixed()}
        storage.write_text(storage.join(self.plan.uri, CONFIG), yaml.safe_dump(tree, sort_keys=False))

    def next(self) -> tuple[TrialRecord, Experiment] | None:
        """The next trial to run, with its experiment; None when there is none. Trials that cannot start have failed."""
        while self.left:
            if self._unfinished:
                record = self.records[self._unfinished.pop(0)]
            else:
                index = self._new.pop(0)
                record = TrialRecord(index=index, point=self._point(index))
            found = self._start(record)
            if found is not None:
                return found
        return None

    def rungs_left(self, record: TrialRecord, experiment: Experiment) -> list[int]:
        """The epochs after which ``record``'s trial is still to be judged."""
        return [epoch for epoch in self.plan.rungs(experiment) if epoch > record.epochs]

    def reached(self, index: int, rung: Rung, last: int) -> bool:
        """Records that a trial of ``last`` epochs has come to ``rung``; returns whether it continues."""
        record = self.records[index]
        record = record.at(rungs=[*record.rungs, rung])
        self._keep(record)
        return self._judge(record, last)

    def failed(self, index: int, reason: str) -> None:
        """Records that a trial has ended by an error; does nothing where it had come to its end before."""
        if self.records[index].state != "running":
            return
        self._keep(self.records[index].at(state="failed", reason=reason))
        self._say(f"trial {index}  failed: {reason}")

    def result(self) -> dict[str, Any]:
        """Everything the report shows, best trial first; JSON."""
        config, best = self.config, records.best(self.records.values(), self.config.mode)
        return {
            "kind": "sweep",
            "sweep": self.plan.uri,
            "base": config.base,
            "metric": config.metric,
            "mode": config.mode,
            "search": config.search,
            "scheduler": config.scheduler.model_dump(mode="json"),
            "space": {key: domain.model_dump(mode="json") for key, domain in config.space.items()},
            "trials": [
                {**record.model_dump(mode="json"), "epochs": record.epochs, "value": record.value}
                for record in records.ranked(self.records.values(), config.mode)
            ],
            "asked": points.count(config),
            "best": None if best is None else best.index,
            "argv": sys.argv,
            "commit": commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def write(self) -> None:
        """Writes ``results.json``, and of the best trial so far ``best.yaml``."""
        best = records.best(self.records.values(), self.config.mode)
        storage.write_text(storage.join(self.plan.uri, RESULTS), json.dumps(self.result(), indent=1))
        if best is None:
            return
        experiment = self.plan.experiment(best.point, storage.join(self.plan.uri, "best"))
        head = (
            f"# The best of {len(self.records)} trials of {self.plan.uri}: trial {best.index}, "
            f"{self.config.metric} {best.value:.5g} after {best.epochs} epochs.\n"
            f"# Command: rayssl train {storage.join(self.plan.uri, BEST)}\n"
        )
        if best.taken:
            head += (
                f"# Its values changed on the way; the weights that came of it are in {self.plan.run(best.index)}.\n"
            )
        tree = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
        storage.write_text(storage.join(self.plan.uri, BEST), head + tree)

    def _start(self, record: TrialRecord) -> tuple[TrialRecord, Experiment] | None:
        """The trial's experiment, its folder ready; None where its values do not fit together: then it has failed."""
        record = record.at(state="running", reason=None)
        self._keep(record)
        run = self.plan.run(record.index)
        try:
            experiment = self.plan.experiment(record.point, run)
        except UserError as error:
            self.failed(record.index, str(error).removeprefix(f"{self.plan.where}: "))
            return None
        tree = experiment.model_dump(mode="json")
        record_run(experiment, origins(tree, assignments(record.point), experiment))
        return record, experiment

    def _point(self, index: int) -> Point:
        if self.config.search == "optuna":
            return points.suggested(self.config, index, self.records.values())
        return self._points[index]

    def _keep(self, record: TrialRecord) -> None:
        self.records[record.index] = record
        records.write(self.plan.run(record.index), record)

    def _settle(self, index: int) -> None:
        """Judges a trial whose last rung was written when the driver ended before it was judged."""
        record = self.records[index]
        if record.state == "failed" or not record.rungs or record.passed == record.epochs:
            return
        try:
            last = self.plan.experiment(record.point, self.plan.run(index)).training.epochs
        except UserError:
            return
        if not self._judge(record, last):
            self._unfinished.remove(index)

    def _judge(self, record: TrialRecord, last: int) -> bool:
        config, rung, value = self.config, record.rungs[-1], record.rungs[-1].value
        line = self._line(record, last)
        if rung.epoch >= last:
            self._keep(record.at(state="finished"))
            self._say(f"{line}  finished ({record.seconds:.0f} s)")
            return False
        if isinstance(config.scheduler, ASHAConfig):
            values = [r.value for each in self.records.values() for r in each.rungs if r.epoch == rung.epoch]
            where = f"place {records.place(value, values, config.mode)} of {len(values)} after epoch {rung.epoch}"
            if not records.continues(value, values, config.scheduler.reduction, config.mode):
                self._keep(record.at(state="stopped", reason=where))
                self._say(f"{line}  stopped: {where}")
                return False
            line = f"{line}  continues: {where}"
        self._keep(record.at(passed=rung.epoch))
        self._say(line)
        return True

    def _line(self, record: TrialRecord, last: int) -> str:
        return f"trial {record.index}  epoch {record.epochs}/{last}  {self.config.metric} {record.value:.5g}"


def table(state: SweepState) -> str:
    """The trials as text, best first."""
    keys = list(state.config.space)
    names = [key.rpartition(".")[2] for key in keys]
    names = names if len(set(names)) == len(names) else keys
    rows = [["rank", "trial", *names, state.config.metric, "epochs", "state"]]
    for rank, record in enumerate(records.ranked(state.records.values(), state.config.mode), start=1):
        value = "-" if record.value is None else f"{record.value:.5g}"
        ended = record.state if record.state != "failed" else f"failed: {record.reason}"
        shown = [text(record.point[key]) for key in keys]
        rows.append([str(rank), str(record.index), *shown, value, str(record.epochs), ended])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join(lines)


def _same_sweep(plan: SweepPlan) -> None:
    """Raises `ConfigError` where the folder has a sweep of other points, or one judged otherwise."""
    path = storage.join(plan.uri, CONFIG)
    if not storage.exists(path):
        return
    before, now = load_yaml(storage.read_text(path), path).get("fixed"), plan.fixed()
    now = yaml.safe_load(yaml.safe_dump(now))
    if before == now:
        return
    changed = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
    raise ConfigError(
        f"{plan.uri}: has a sweep with another {', '.join(changed)}; put it back, or name another folder in 'sweep'"
    )

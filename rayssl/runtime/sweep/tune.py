"""The three classes by which Ray Tune reaches a `SweepState`: what to try, whether a trial continues, what failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rayssl.reports.sweep.page import write_sweep_report
from rayssl.runtime.sweep.trial import reason
from rayssl.sweeps.records import Rung
from rayssl.sweeps.state import SweepState


class Points(Searcher):  # type: ignore[misc]
    """Tune calls `suggest` whenever there is room for a trial."""

    def __init__(self, state: SweepState) -> None:
        super().__init__(metric=None, mode=None)
        self.sweep = state

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, the argument of `rayssl.runtime.sweep.trial.run_trial`."""
        found = self.sweep.next()
        if found is None:
            return None if self.sweep.waiting else Searcher.FINISHED
        record, experiment = found
        job = {
            "experiment": experiment.model_dump(mode="json"),
            "rungs": self.sweep.rungs_left(record, experiment),
            "metric": self.sweep.config.metric,
            "evaluated": self.sweep.plan.evaluated,
        }
        # as text: Tune would flatten a mapping
        return {"index": record.index, "job": json.dumps(job)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the sweep's state knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing that is read again."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never: a sweep resumes from its own state."""


class Rungs(FIFOScheduler):  # type: ignore[misc]
    """Tune calls it at each report of a trial, to know whether the trial continues."""

    def __init__(self, state: SweepState) -> None:
        super().__init__()
        self.sweep = state

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As the sweep's state decides; results and report are written again when a trial has ended."""
        index = trial.config["index"]
        continues = False
        if "failed" in result:
            self.sweep.failed(index, result["failed"])
        elif "rung" in result:
            continues = self.sweep.reached(index, Rung.model_validate_json(result["rung"]), result["last"])
        if continues:
            return str(TrialScheduler.CONTINUE)
        write(self.sweep)
        return str(TrialScheduler.STOP)


class Failures(Callback):  # type: ignore[misc]
    """Tune calls it when the process of a trial has died."""

    def __init__(self, state: SweepState) -> None:
        self.sweep = state

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records the failure."""
        error = trial.get_error()
        self.sweep.failed(trial.config["index"], "its process died" if error is None else reason(error))
        write(self.sweep)


def write(state: SweepState) -> None:
    """Writes results, best configuration and report, as far as the sweep has come."""
    state.write()
    write_sweep_report(state.plan.uri)

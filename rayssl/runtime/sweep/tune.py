"""A `SweepState` as what Ray Tune asks for: what to try, whether a trial continues, and who hears of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rayssl.reports.sweep.page import write_sweep_report
from rayssl.sweeps.records import Rung
from rayssl.sweeps.state import SweepState


class Points(Searcher):  # type: ignore[misc]
    """Tune asks for a trial whenever there is room for one."""

    def __init__(self, book: SweepState) -> None:
        super().__init__(metric=None, mode=None)
        self.book = book

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration, which is what `rayssl.runtime.sweep.run.run_trial` is given."""
        found = self.book.next()
        if found is None:
            return None if self.book.waiting else Searcher.FINISHED
        record, experiment = found
        job = {
            "experiment": experiment.model_dump(mode="json"),
            "rungs": self.book.rungs_left(record, experiment),
            "metric": self.book.config.metric,
            "evaluated": self.book.plan.evaluated,
        }
        # as text: Tune looks into a mapping, and takes it apart
        return {"index": record.index, "job": json.dumps(job)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the book knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing that is read again."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never: a sweep is gone on with from its book."""


class Rungs(FIFOScheduler):  # type: ignore[misc]
    """Tune asks, at each report of a trial, whether it goes on."""

    def __init__(self, book: SweepState) -> None:
        super().__init__()
        self.book = book

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """By what the book makes of it; results and report are written anew when a trial has ended."""
        index = trial.config["index"]
        goes_on = False
        if "failed" in result:
            self.book.failed(index, result["failed"])
        elif "rung" in result:
            goes_on = self.book.reached(index, Rung.model_validate_json(result["rung"]), result["last"])
        if goes_on:
            return str(TrialScheduler.CONTINUE)
        write(self.book)
        return str(TrialScheduler.STOP)


class Watch(Callback):  # type: ignore[misc]
    """Tune says when the process of a trial has died."""

    def __init__(self, book: SweepState) -> None:
        self.book = book

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed."""
        from rayssl.runtime.sweep.run import reason

        error = trial.get_error()
        self.book.failed(trial.config["index"], "its process died" if error is None else reason(error))
        write(self.book)


def write(book: SweepState) -> None:
    """Results, best configuration and report, as far as the sweep is."""
    book.write()
    write_sweep_report(book.plan.uri)

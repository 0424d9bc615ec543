"""One trial of a sweep, in a process of its own: it trains to each rung, evaluates and reports."""

from __future__ import annotations

import json
import math
import time
import traceback
from typing import Any

from rayssl import storage
from rayssl.errors import UserError
from rayssl.experiment.build import check_start
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.sweeps.records import Rung

_PAUSE_S = 2.0  # before an evaluation is tried again


def run_trial(config: dict[str, Any]) -> None:
    """What Tune runs: trains to each rung, evaluates, reports, and waits in the report until it may continue.

    ``config["job"]`` is the JSON that `rayssl.runtime.sweep.tune.Points` writes. Relies on Tune to end this process
    where the trial may not continue. An error is reported by its first line; ``error.txt`` in the run's folder has the
    rest.
    """
    from ray import tune

    job = json.loads(config["job"])
    experiment = Experiment(**job["experiment"])
    for epoch in job["rungs"]:
        began = time.monotonic()
        try:
            figures = _figures_at(experiment, epoch, job["evaluated"])
            value = figures.get(job["metric"])
            if value is None or not math.isfinite(value):
                raise UserError(f"{job['metric']} is {value} after epoch {epoch}")
        except Exception as error:
            line = reason(error)
            storage.write_text(storage.join(experiment.run, "error.txt"), traceback.format_exc())
            tune.report({"failed": line})
            return
        rung = Rung(epoch=epoch, value=value, seconds=round(time.monotonic() - began, 1), figures=figures)
        tune.report({"rung": rung.model_dump_json(), "last": experiment.training.epochs})


def reason(error: BaseException) -> str:
    """Why a trial has failed, on one line."""
    from rayssl.runtime.budget import user_error

    mistake = user_error(error)
    lines = [line.strip() for line in str(mistake or error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if mistake is not None and first else f"{type(error).__name__}: {first}".rstrip(": ")


def evaluate_with_retries(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run's last checkpoint; of several heads those of the model's own, or of the first probe.

    After an error that a user cannot fix it is tried again, as often as training is: beside other trials an actor of
    Ray Data was once refused its place.
    """
    from rayssl.runtime.budget import user_error
    from rayssl.runtime.evaluation import evaluate as evaluation

    for attempt in range(experiment.ray.max_failures + 1):
        try:
            found = evaluation.evaluate(experiment.run)
            first = found[0] if isinstance(found, list) else found
            return first.model_dump(mode="json")
        except Exception as error:
            if user_error(error) is not None or attempt == experiment.ray.max_failures:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def _figures_at(experiment: Experiment, epoch: int, evaluated: bool) -> dict[str, float]:
    """Trains to the end of ``epoch``; the figures of training and, with ``evaluated``, of evaluation, which win."""
    from rayssl.runtime import train as training

    job = resolve(experiment)
    check_start(job)
    figures = dict(training.train(job, until=epoch))
    if evaluated:
        figures |= evaluate_with_retries(experiment)
    return {name: float(value) for name, value in figures.items() if type(value) in (int, float)}

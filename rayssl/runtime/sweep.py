"""`rayssl sweep`: Ray Tune runs the trials of a sweep, each a whole distributed training with a memory of its own.

Tune places and watches the trials. What is next and who goes on is the `Book`'s, which this process keeps in the
sweep's folder, and from which the same command goes on after any end: Tune's own notes are thrown away.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from rayssl.errors import ConfigError, UserError
from rayssl.experiment import Experiment
from rayssl.reports.sweep import write_sweep_report
from rayssl.runtime import cluster
from rayssl.sweeps.book import Book
from rayssl.sweeps.config import Choices, Plan
from rayssl.sweeps.records import Rung


def sweep(plan: Plan, say: Callable[[str], None], *, retry_failed: bool = False) -> Book:
    """Runs the trials that ``plan`` still needs, and writes results, the best configuration and the report.

    ``say`` is given one line for each time a trial is judged. A trial that fails does not end the sweep. Raises
    `UserError` for what is wrong with all of them, and where every one has failed.
    """
    book = Book(plan, say, retry_failed=retry_failed)
    if book.left:
        book.begin()
        with tempfile.TemporaryDirectory(prefix="rayssl-tune-") as scratch:
            _run(plan, book, scratch)
    book.write()
    write_sweep_report(plan.uri)
    failed = [record for record in book.records.values() if record.state == "failed"]
    if len(failed) == len(book.records):
        raise UserError(f"{plan.uri}: every trial failed ({len(failed)} of them), the first by: {failed[0].reason}")
    return book


def _run(plan: Plan, book: Book, scratch: str) -> None:
    # Tune's own files are of no use here, and trials keep this process's working folder
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one greets even where it is told to be silent
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "3600")
    trials_at_once = _connect(plan, book.left)
    from ray import tune

    from rayssl.runtime.sweep_tune import Points, Rungs, Watch

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": 0.01}),  # its training asks for the rest; 0 is refused
        tune_config=tune.TuneConfig(
            search_alg=Points(book),
            scheduler=Rungs(book),
            num_samples=book.left,
            max_concurrent_trials=trials_at_once,
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # by default all of the experiment
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            verbose=0,
            callbacks=[Watch(book)],
            failure_config=tune.FailureConfig(max_failures=0),  # training has restarts of its own
        ),
    )
    tuner.fit()


def run_trial(config: dict[str, Any]) -> None:
    """What Tune runs in a process of its own: trains to each rung, evaluates, reports and waits to be told to go on.

    Relies on Tune ending this process where it is not to go on. Errors are reported, by the first line.
    """
    from ray import tune

    job = json.loads(config["job"])
    experiment = Experiment(**job["experiment"])
    for epoch in job["rungs"]:
        began = time.monotonic()
        try:
            figures = _to(experiment, epoch, job["evaluated"])
            value = figures.get(job["metric"])
            if value is None or not math.isfinite(value):
                raise UserError(f"{job['metric']} is {value} after epoch {epoch}")
        except Exception as error:
            logging.getLogger(__name__).exception("trial %s", experiment.run)
            tune.report({"failed": reason(error)})
            return
        rung = Rung(epoch=epoch, value=value, seconds=round(time.monotonic() - began, 1), figures=figures)
        tune.report({"rung": rung.model_dump_json(), "last": experiment.training.epochs})


def reason(error: BaseException) -> str:
    """Why a trial has failed, on one line."""
    from rayssl.runtime.train import user_error

    mistake = user_error(error)
    lines = [line.strip() for line in str(mistake or error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if mistake is not None and first else f"{type(error).__name__}: {first}".rstrip(": ")


def _to(experiment: Experiment, epoch: int, evaluated: bool) -> dict[str, float]:
    """Trains to the end of ``epoch`` and evaluates; the figures of both, those of evaluation before."""
    from rayssl.runtime import train as training
    from rayssl.runtime.evaluate import evaluate

    figures = dict(training.train(experiment, training.check(experiment), until=epoch))
    if evaluated:
        found = evaluate(experiment.run)
        first = found[0] if isinstance(found, list) else found  # of several heads the model's own, or the first probe
        figures |= first.model_dump(mode="json")
    return {name: float(value) for name, value in figures.items() if type(value) in (int, float)}


def _connect(plan: Plan, left: int) -> int:
    """Connects to Ray; how many trials have room there at once: two half of which started would wait for ever."""
    cpus, gpus = needs(plan)
    wanted = plan.config.concurrent
    if not cluster.started() and not cluster.joins():
        base = plan.experiment({}, plan.run(0)).ray
        room = max(1, int((os.cpu_count() or 1) / (base.workers * base.cpus_per_worker)))
        at_once = min(left, wanted or room)
        cluster.connect(cpus=at_once * cpus, logs=False)
    else:
        cluster.connect(logs=False)
        at_once = left
    import ray

    has = ray.cluster_resources()
    room = int(has.get("CPU", 0.0) / cpus)
    if gpus and has.get("GPU", 0.0) >= gpus:
        room = min(room, int(has["GPU"] / gpus))
    if wanted and wanted > max(1, room):
        raise ConfigError(
            f"concurrent={wanted}: trials need {cpus:g} CPUs and {gpus:g} GPUs each, of the {has.get('CPU', 0):g} and "
            f"{has.get('GPU', 0):g} of the cluster; set concurrent to {max(1, room)} at the most"
        )
    return max(1, min(at_once, room, wanted or room))


def needs(plan: Plan) -> tuple[float, float]:
    """CPUs and GPUs that the largest trial takes of a cluster: ranks, memory, and one CPU for its data tasks."""
    cpus = gpus = 0.0
    domains = plan.config.space.items()
    corners = [
        {},
        *({key: value} for key, domain in domains if isinstance(domain, Choices) for value in domain.choices),
    ]
    for point in corners:
        try:
            experiment = plan.experiment(point, plan.run(0))
        except ConfigError:  # not by itself
            continue
        ray, memory = experiment.ray, experiment.memory
        actors = 0 if experiment.evaluation is None else experiment.evaluation.actors
        cpus = max(cpus, ray.workers * ray.cpus_per_worker + memory.actors * memory.cpus + 1, actors + 1)
        gpus = max(gpus, 0 if ray.gpu is False else ray.workers + memory.gpus * memory.shards)
    return cpus, gpus

"""`rayssl sweep`: Ray Tune runs the trials of a sweep, each a whole distributed training with a memory of its own.

Tune places and watches the trials. What is next and who goes on is the `SweepState`'s, which this process keeps in the
sweep's folder, and from which the same command goes on after any end: Tune's own notes are thrown away.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rayssl import storage
from rayssl.errors import ConfigError, UserError
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.reports.sweep.page import write_sweep_report
from rayssl.runtime import cluster
from rayssl.sweeps.config import Choices, PBTConfig, SweepPlan
from rayssl.sweeps.points import count
from rayssl.sweeps.population import Population
from rayssl.sweeps.records import Rung
from rayssl.sweeps.state import SweepState

_PAUSE_S = 2.0  # before an evaluation is tried again


def sweep(plan: SweepPlan, say: Callable[[str], None], *, retry_failed: bool = False) -> SweepState:
    """Runs the trials that ``plan`` still needs, and writes results, the best configuration and the report.

    ``say`` is given one line for each time a trial is judged. A trial that fails does not end the sweep. Raises
    `UserError` for what is wrong with all of them, and where every one has failed.
    """
    kind = Population if isinstance(plan.config.scheduler, PBTConfig) else SweepState
    book = kind(plan, say, retry_failed=retry_failed)
    if book.left:
        book.begin()
        with tempfile.TemporaryDirectory(prefix="rayssl-tune-") as scratch:
            _run(plan, book, scratch, say)
    book.write()
    write_sweep_report(plan.uri)
    failed = [record for record in book.records.values() if record.state == "failed"]
    if failed and len(failed) == len(book.records):
        raise UserError(f"{plan.uri}: every trial failed ({len(failed)} of them), the first by: {failed[0].reason}")
    return book


def _run(plan: SweepPlan, book: SweepState, scratch: str, say: Callable[[str], None]) -> None:
    # Tune's own files are of no use here, and trials keep this process's working folder
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one greets even where it is told to be silent
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "3600")
    trials_at_once = _connect(plan, min(book.left, count(plan.config)), say)
    from ray import tune

    from rayssl.runtime.sweep.tune import Points, Rungs, Watch
    from rayssl.runtime.train import user_error

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
    try:
        tuner.fit()
    except Exception as error:
        mistake = user_error(error)  # of what this process writes; trials report theirs
        if mistake is None:
            raise
        raise mistake from None


def run_trial(config: dict[str, Any]) -> None:
    """What Tune runs in a process of its own: trains to each rung, evaluates, reports and waits to be told to go on.

    Relies on Tune ending this process where it is not to go on. Errors are reported by their first line; ``error.txt``
    in the run's folder has the rest.
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
            told = reason(error)
            storage.write_text(storage.join(experiment.run, "error.txt"), traceback.format_exc())
            tune.report({"failed": told})
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

    figures = dict(training.train(resolve(experiment), until=epoch))
    if evaluated:
        figures |= evaluated_again(experiment)
    return {name: float(value) for name, value in figures.items() if type(value) in (int, float)}


def evaluated_again(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run's last checkpoint; of several heads those of the model's own, or of the first probe.

    Tried once more after an error that a user cannot mend, as often as training is: beside other trials an actor of
    Ray Data was seen to be refused its place, once.
    """
    from rayssl.runtime.evaluation import evaluate as evaluation
    from rayssl.runtime.train import user_error

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


def _connect(plan: SweepPlan, left: int, say: Callable[[str], None]) -> int:
    """Connects to Ray; how many trials run at once there.

    No more than have room, unless they were asked for: of two that have half of what they need neither would go on.
    """
    every, wanted = _experiments(plan), plan.config.concurrent
    at_once = wanted or left
    if cluster.started() or cluster.joins():
        cluster.connect(logs=False)
    else:
        cores = os.cpu_count() or 1
        by_cores = min(max(1, int(cores / (each.ray.workers * each.ray.cpus_per_worker))) for each in every)
        at_once = min(wanted or by_cores, left)
        cluster.connect(cpus=at_once * max(_cpus(experiment) for experiment in every), logs=False)
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_room = min(room(experiment, nodes) for experiment in every)
    if wanted and wanted > has_room:
        say(f"concurrent={wanted}: there is room for {has_room} now; the others wait for more nodes")
    return min(left, wanted or max(1, min(at_once, has_room)))


def _experiments(plan: SweepPlan) -> list[Experiment]:
    """The base and, for each of the choices of a key, the base with it: trials differ little in what they take."""
    found = [plan.experiment({}, plan.run(0))]
    for key, domain in plan.config.space.items():
        for value in domain.choices if isinstance(domain, Choices) else ():
            with suppress(ConfigError):  # not by itself
                found.append(plan.experiment({key: value}, plan.run(0)))
    return found


def _cpus(experiment: Experiment) -> float:
    """CPUs that a trial takes: of ranks and memory, and one for the tasks that read; or of its evaluation."""
    ray, memory = experiment.ray, experiment.memory
    actors = 0 if experiment.evaluation is None else experiment.evaluation.actors
    return max(ray.workers * ray.cpus_per_worker + memory.actors * memory.cpus, actors) + 1


def room(experiment: Experiment, nodes: list[dict[str, float]]) -> int:
    """How many trials of ``experiment`` the ``nodes`` hold at once; each is what Ray says the node has."""
    ray, memory = experiment.ray, experiment.memory

    def total(name: str) -> float:
        return sum(node.get(name, 0.0) for node in nodes)

    def fitting(name: str, amount: float) -> int:
        return sum(int(node.get(name, 0.0) / amount) for node in nodes)

    found = [int(total("CPU") / _cpus(experiment)), fitting("CPU", ray.cpus_per_worker) // ray.workers]
    if ray.gpu is True or (ray.gpu == "auto" and total("GPU") >= ray.workers):
        found.append(int(total("GPU") / (ray.workers + memory.gpus * memory.shards)))
    if memory.memory_bytes:
        found.append(fitting("memory", memory.memory_bytes) // memory.shards)
    return min(found)

"""`rayssl sweep`: Ray Tune runs the trials of a sweep. Each is a whole distributed training with a memory of its own.

Tune places and watches the trials. The `SweepState` decides which trial is next and which may continue. This process
keeps it in the sweep's folder, so that the same command resumes after any end. Tune's own files are thrown away.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress

from rayssl.errors import ConfigError, UserError
from rayssl.experiment.config import Experiment
from rayssl.reports.sweep.page import write_sweep_report
from rayssl.runtime import cluster
from rayssl.runtime.sweep.trial import run_trial
from rayssl.sweeps.config import Choices, PBTConfig, SweepPlan
from rayssl.sweeps.points import count
from rayssl.sweeps.population import Population
from rayssl.sweeps.state import SweepState


def sweep(plan: SweepPlan, say: Callable[[str], None], *, retry_failed: bool = False) -> SweepState:
    """Runs the trials of ``plan`` that have not ended yet; writes results, the best configuration and the report.

    ``say`` gets one line each time a trial is judged. A trial that fails does not end the sweep. ``retry_failed``:
    trials that failed before are tried again. Raises `UserError` for mistakes that all trials share, and where all have
    failed.
    """
    kind = Population if isinstance(plan.config.scheduler, PBTConfig) else SweepState
    state = kind(plan, say, retry_failed=retry_failed)
    if state.left:
        state.begin()
        with tempfile.TemporaryDirectory(prefix="rayssl-tune-") as scratch:
            _run(plan, state, scratch, say)
    state.write()
    write_sweep_report(plan.uri)
    failed = [record for record in state.records.values() if record.state == "failed"]
    if failed and len(failed) == len(state.records):
        raise UserError(f"{plan.uri}: every trial failed ({len(failed)} of them), the first by: {failed[0].reason}")
    return state


def _run(plan: SweepPlan, state: SweepState, scratch: str, say: Callable[[str], None]) -> None:
    # Tune's own files are of no use here, and trials keep this process's working folder
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a greeting even with verbose=0
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "3600")
    trials_at_once = _connect(plan, min(state.left, count(plan.config)), say)
    from ray import tune

    from rayssl.runtime.budget import user_error
    from rayssl.runtime.sweep.tune import Failures, Points, Rungs

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": 0.01}),  # its training asks for the rest; 0 is refused
        tune_config=tune.TuneConfig(
            search_alg=Points(state),
            scheduler=Rungs(state),
            num_samples=state.left,
            max_concurrent_trials=trials_at_once,
            trial_dirname_creator=lambda trial: str(trial.trial_id),  # by default all of the experiment
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            verbose=0,
            callbacks=[Failures(state)],
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


def _connect(plan: SweepPlan, left: int, say: Callable[[str], None]) -> int:
    """Connects to Ray; returns how many trials run at once there.

    No more than have room, unless the configuration asks for more: two trials that each have half of what they need
    would wait for each other.
    """
    every, wanted = _experiments(plan), plan.config.concurrent
    at_once = wanted or left
    if cluster.started() or cluster.joins():
        cluster.connect(logs=False)
    else:
        cores = os.cpu_count() or 1
        by_cores = min(max(1, int(cores / (each.ray.fewest * each.ray.cpus_per_worker))) for each in every)
        at_once = min(wanted or by_cores, left)
        cluster.connect(cpus=at_once * max(_cpus(experiment) for experiment in every), logs=False)
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_room = min(room(experiment, nodes) for experiment in every)
    if wanted and wanted > has_room:
        say(f"concurrent={wanted}: there is room for {has_room} now; the others wait for more nodes")
    return min(left, wanted or max(1, min(at_once, has_room)))


def _experiments(plan: SweepPlan) -> list[Experiment]:
    """The base and, for each of the choices of a key, the base with it; other trials need about the same resources."""
    found = [plan.experiment({}, plan.run(0))]
    for key, domain in plan.config.space.items():
        for value in domain.choices if isinstance(domain, Choices) else ():
            with suppress(ConfigError):  # this choice needs others beside it
                found.append(plan.experiment({key: value}, plan.run(0)))
    return found


def _cpus(experiment: Experiment) -> float:
    """CPUs that a trial takes: those of ranks and memory, or of its evaluation, and one for the tasks that read."""
    ray, memory = experiment.ray, experiment.memory
    actors = 0 if experiment.evaluation is None else experiment.evaluation.actors
    return max(ray.fewest * ray.cpus_per_worker + memory.actors * memory.cpus, actors) + 1


def room(experiment: Experiment, nodes: list[dict[str, float]]) -> int:
    """How many trials of ``experiment`` run at once on ``nodes``: of each the resources, as Ray names them."""
    ray, memory = experiment.ray, experiment.memory

    def total(name: str) -> float:
        return sum(node.get(name, 0.0) for node in nodes)

    def fitting(name: str, amount: float) -> int:
        return sum(int(node.get(name, 0.0) / amount) for node in nodes)

    found = [int(total("CPU") / _cpus(experiment)), fitting("CPU", ray.cpus_per_worker) // ray.fewest]
    if ray.gpu is True or (ray.gpu == "auto" and total("GPU") >= ray.fewest):
        found.append(int(total("GPU") / (ray.fewest + memory.gpus * memory.shards)))
    if memory.memory_bytes:
        found.append(fitting("memory", memory.memory_bytes) // memory.shards)
    return min(found)

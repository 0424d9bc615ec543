"""`rayssl train`: a TorchTrainer around the loop, which resumes from the last checkpoint in the run's folder.

rayssl writes its checkpoints itself, in the run's folder, and gives Ray Train only figures. So there is one format with
and without Ray, it is consistent with the memory, and every other verb can read it.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rayssl import collectives
from rayssl.batches.streams import joined
from rayssl.errors import ConfigError, DamagedCheckpoint, Stopped, StorageOutage
from rayssl.experiment import hardware
from rayssl.experiment.build import build_loop
from rayssl.experiment.config import Experiment
from rayssl.experiment.ending import ended
from rayssl.experiment.job import Job, position
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.methods.base import Method
from rayssl.models.buffers import differing
from rayssl.progress import Event, Line, Phase, Screen, open_screen
from rayssl.runtime import cluster, console, room
from rayssl.runtime.budget import Budget, first_line, user_error
from rayssl.training import checkpoint
from rayssl.training.context import ClassClient, MemoryClient
from rayssl.training.feed import placed
from rayssl.training.stopping import Stopping
from rayssl.training.trackers.base import Tracker
from rayssl.views.banks import RecordedBank

if TYPE_CHECKING:  # it imports ray, and ray reads the environment then: see `rayssl.runtime.cluster.connect`
    from rayssl.runtime.banks import BankRefs


def train(job: Job, until: int | None = None, *, screen: Screen | None = None, verbose: bool = False) -> dict[str, Any]:
    """Trains the run of ``job``, or resumes it. For a finished run it does nothing.

    If anything but a mistake of the user goes wrong, the workers restart from the last checkpoint: at most
    ``ray.max_failures`` times in a row without a new one.

    Args:
        job: what to train, from `rayssl.experiment.job.resolve`.
        until: the epoch to stop after (default, and at most: ``training.epochs``). Schedules still end with
            ``training.epochs``: a later call with a higher value resumes as if the run had not stopped.
        screen: shows what happens, of all processes (default: lines on standard output).
        verbose: whether also what Ray's own processes print is shown.

    Returns:
        The metrics of the last epoch.

    Raises:
        UserError: the user can fix it; the message is one line.
        Stopped: a signal stopped the training, and a checkpoint was saved.
    """
    experiment, memory = job.experiment, job.experiment.memory
    until = min(until or experiment.training.epochs, experiment.training.epochs)
    screen = screen or open_screen("plain")
    say = partial(_say, screen)
    done = ended(job, until, say)
    if done is not None:
        return done
    cluster.check()
    for each in job.header():
        say(each)
    cpus = experiment.ray.most * experiment.ray.cpus_per_worker + memory.actors * memory.cpus
    connect = partial(_connect, cpus, screen, verbose)
    connect()
    if _has_actors(job):
        _check_actors(experiment)
    return _to_the_end(job, until, say, connect)


def _to_the_end(job: Job, until: int, say: Callable[[str], None], connect: Callable[[], None]) -> dict[str, Any]:
    """Trains, again and again after failures. Returns the metrics of the last epoch."""
    from rayssl.runtime import banks

    read, experiment = banks.start(job.banks()), job.experiment
    budget = Budget(job.run, experiment.ray.max_failures, partial(_newest, job.run))
    timeout_s = experiment.ray.start_timeout_s
    while True:
        try:
            if cluster.lost():
                cluster.disconnect()
                connect()
                read = banks.start(job.banks())
            gpu = _use_gpu(experiment)
            count = _workers(job, gpu, timeout_s, say)
            timeout_s = math.inf  # what has started once waits for nodes that come back, however long
            figures = _fit(job, count, until, read, gpu, say)
            if figures is not None:
                return figures
        except Exception as error:
            mistake = user_error(error)
            if isinstance(mistake, DamagedCheckpoint) and (line := checkpoint.go_back(job.run, mistake)) is not None:
                say(line)
                continue
            if mistake is not None and not isinstance(mistake, StorageOutage):
                raise mistake from None
            line, wait = budget.failed(mistake or error)
            say(line)
            if wait is None:
                raise mistake or error from None
            time.sleep(wait)


def _say(screen: Screen, line: str) -> None:
    screen.show(Line(line))


def _connect(cpus: float, screen: Screen, verbose: bool) -> None:
    """Joins or starts the cluster, whose processes print on ``screen`` from now on."""
    began, before = time.monotonic(), cluster.started()
    cluster.connect(cpus)
    console.take_over(screen, verbose)
    if before:
        return
    screen.show(Phase("joined Ray's cluster" if cluster.joins() else "started Ray", time.monotonic() - began))
    for line in cluster.addresses():
        screen.show(Line(line))


def _has_actors(job: Job) -> bool:
    return job.utterances is not None or job.classes is not None


def _workers(job: Job, gpu: bool, timeout_s: float, say: Callable[[str], None]) -> int:
    """The number of workers that there is room for now; see `room.find`."""
    experiment = job.experiment
    counts = experiment.worker_counts
    if cluster.joins():
        count = room.find(experiment, gpu, _has_actors(job), say, timeout_s)
    else:  # on this machine only GPUs may be missing
        count = next(each for each in counts if not gpu or each <= _gpus(experiment))
    if len(counts) > 1:
        say(f"{job.run}: trains with {count} workers, of {counts[-1]} to {counts[0]}")
    return count


def _newest(run: str) -> int:
    """The step of the last checkpoint; 0 if there is none, or the store does not answer."""
    try:
        return max(checkpoint.steps(run), default=0)
    except StorageOutage:
        return 0


def _fit(
    job: Job, count: int, until: int, read: BankRefs, gpu: bool, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Trains with ``count`` workers. Returns the metrics of the last epoch.

    None: the workers have left before, to start again elsewhere, or with more.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from rayssl.runtime import ingest
    from rayssl.runtime.group import GroupConfig

    growth = room.Growth(job.experiment, gpu, count)
    experiment = job.experiment.with_workers(count)
    job = replace(job, experiment=experiment)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = f"{experiment.ray.silent_s:g}"
    start = position(job)
    datasets, data_config = ingest.for_train(job, start, until)
    told = {"job": job, "start": start, "until": until, "banks": read, "began": time.time()}
    scratch = tempfile.TemporaryDirectory(prefix="rayssl-train-")  # for Ray Train's own files; no checkpoints
    backend = collectives.GPU_BACKEND if gpu else "gloo"
    trainer = TorchTrainer(
        partial(_worker, told),  # as Ray's train_loop_config, the controller would read it, and import torch
        torch_config=GroupConfig(backend, experiment.ray.collective_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=gpu,
            resources_per_worker={"CPU": experiment.ray.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=experiment.run.rstrip("/").rsplit("/", 1)[-1] + "-" + os.urandom(3).hex(),
            storage_path=scratch.name,
            logging_config=LoggingConfig(log_level="CRITICAL"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
        datasets=datasets,
        dataset_config=data_config,
    )
    with scratch:
        why = _run_gracefully(trainer.fit, told, growth, say)
    if why and position(job).epoch < until:
        at = checkpoint.steps(job.run)
        say(f"{job.run}: {why}; all ranks have saved at step {at[-1] if at else 0}, and start again")
        return None
    # Ray Train returns no figures for a run without its own checkpoints
    return checkpoint.read_meta(checkpoint.locate(job.run, "last")).metrics


def _run_gracefully(
    fit: Callable[[], Any], told: dict[str, Any], growth: room.Growth, say: Callable[[str], None]
) -> str:
    """Trains. Returns why the ranks were told to leave before the end, if they were.

    After a signal all ranks save and stop at the same step; then this raises `Stopped`.
    """
    from rayssl.runtime import signals

    failed = ""
    with cluster.no_leftovers(), signals.GracefulShutdown(listening=cluster.joins()) as shutdown, growth:
        told["bell"] = shutdown.bell
        try:
            shutdown.run(fit, say, partial(_watch, growth))
        except Exception as error:
            if shutdown.received is None or user_error(error) is not None:
                raise
            failed = f" ({first_line(error)})"
        why = shutdown.why()
    job: Job = told["job"]
    if shutdown.received is not None and position(job).epoch < job.experiment.training.epochs:
        known = checkpoint.steps(job.run)
        at = f"step {known[-1]}" if known else "the beginning, nothing was saved"
        raise Stopped(f"{job.run}: stopped at {at}{failed}; the same command resumes", shutdown.received)
    return why


def _watch(growth: room.Growth) -> str | None:
    """Why the ranks should leave now, or None. Raises RuntimeError if this machine's own cluster is lost."""
    if cluster.lost():
        raise RuntimeError("Ray's processes on this machine have died")
    return growth()


def _check_actors(experiment: Experiment) -> None:
    """Raises `ConfigError` if the cluster has too little for the memory's actors: they would wait for ever."""
    import ray

    config, cluster_has = experiment.memory, ray.cluster_resources()
    for key, resource, wanted in (("gpus", "GPU", config.gpus), ("memory_bytes", "memory", config.memory_bytes)):
        if wanted * config.shards > cluster_has.get(resource, 0.0):
            raise ConfigError(
                f"memory.{key}={wanted:g}: {config.shards} actors need {wanted * config.shards:g} and the cluster has "
                f"{cluster_has.get(resource, 0.0):g}; set memory.{key} lower, or 0"
            )


def _use_gpu(experiment: Experiment) -> bool:
    wanted, fewest = experiment.ray.gpu, experiment.worker_counts[-1]
    if wanted is True and not cluster.joins() and _gpus(experiment) < fewest:  # a joined cluster may add nodes
        raise ConfigError(
            f"ray.gpu=true: {fewest} workers need as many GPUs and this machine has only {_gpus(experiment)} for them; "
            "set ray.gpu=false, or set ray.workers lower"
        )
    return _gpus(experiment) >= fewest if wanted == "auto" else wanted


def _gpus(experiment: Experiment) -> int:
    """The GPUs of the cluster that the memory's actors leave."""
    import ray

    config = experiment.memory
    return int(ray.cluster_resources().get("GPU", 0.0) - config.gpus * config.shards)


class RayContext:
    """The loop's `Context` inside a Ray Train worker."""

    def __init__(self, job: Job, read: BankRefs) -> None:
        import ray.train.torch

        self.rank = collectives.rank()
        self.world = collectives.world()
        self.device: torch.device = ray.train.torch.get_device()
        self._job, self._banks = job, read

    def report(self, metrics: dict[str, Any]) -> None:
        """Gives ``metrics`` to Ray Train, for its dashboard and for Tune."""
        import ray.train

        ray.train.report(metrics)

    def tell(self, event: Event) -> None:
        """Brings ``event`` to the screen of the driver."""
        console.tell(event)

    def say(self, line: str) -> None:
        """See `tell`."""
        console.tell(Line(line))

    def wrap(self, method: Method) -> nn.Module:
        """See `Context.wrap`."""
        return collectives.replicated(method, self.device, differing(method, statistics=method.reads_statistics))

    def bank(self, wanted: RecordedBank) -> NDArray[np.float32]:
        """The bank from the object store; one task reads it for all ranks."""
        from rayssl.runtime import banks

        return banks.take(self._banks, wanted)

    def utterance_memory(self, settings: MemorySettings) -> MemoryClient:
        """A client of the actors that hold the memory of utterances."""
        from rayssl.runtime.memory.client import connect

        return connect(settings, self._job.experiment.memory, self._job.run)

    def class_memory(self, settings: ClassSettings) -> ClassClient:
        """A client of the actors that hold the memory of classes."""
        from rayssl.runtime.memory.classes import ActorClasses

        return ActorClasses(settings, self._job.experiment.memory, self._job.run)

    def nodes(self, memory: MemoryClient | ClassClient | None) -> list[str]:
        """The ids of the nodes on which the ranks and the memory's actors are. Every rank must call this."""
        import ray

        from rayssl.runtime.memory.asking import Watch

        own = {ray.get_runtime_context().get_node_id()}
        watch = None if memory is None else memory.watch
        if self.rank == 0 and isinstance(watch, Watch):
            own |= set(watch.nodes())
        return sorted(set[str]().union(*collectives.gather_objects(own)))

    def open_log(self, resume_step: int | None) -> Tracker:
        """The trackers of this rank: Ray's metrics and, on rank 0, the run's own file and the configured trackers."""
        from rayssl.runtime.telemetry import open_log

        experiment = self._job.experiment
        return open_log(experiment, rank=self.rank, world=self.world, resume_step=resume_step, say=self.say)


def _worker(told: dict[str, Any]) -> None:
    import ray.train

    from rayssl.runtime import ingest, signals

    logging.getLogger().setLevel(logging.WARNING)  # parts of Ray Train log each report to the root
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # the driver prints what is raised here, once
    job: Job = told["job"]
    torch.set_num_threads(max(1, int(job.experiment.ray.cpus_per_worker)))
    context = RayContext(job, told["banks"])
    if context.rank == 0:
        context.tell(Phase(f"started {context.world} workers", time.time() - told["began"]))
    shards = [ray.train.get_dataset_shard(name) for name in job.streams]
    blocks = [ingest.begun(ingest.packed(shard, context.rank)) for shard in shards]  # reads while the model is built
    began = time.monotonic()
    loop = build_loop(job, context)
    if context.rank == 0:
        context.tell(Phase(_built(loop.state.method, context), time.monotonic() - began))
    if loop.cursor != told["start"]:  # Ray started these workers once more, and others have saved between
        raise RuntimeError(f"the batches begin at {told['start']}, and the run resumes at {loop.cursor}")
    nodes = context.nodes(loop.state.checkpointable)
    heard = signals.listen(told["bell"], nodes) if context.rank == 0 else lambda: False
    loop.state.stopping = Stopping(None if told["bell"] is None else heard)
    rows = [placed(each, context.device) for each in blocks]
    log = loop.state.log
    assert log is not None
    try:
        loop.fit(joined(rows[0], rows[1] if len(rows) > 1 else None), told["until"])
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            log.close(failed=True)
        raise
    log.close()


def _built(method: Method, context: RayContext) -> str:
    """What was built, for a person: how many parameters, and where they are trained."""
    found = hardware.describe(method, context.device, context.world)
    threads = "" if context.device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"built {found['trainable'] / 1e6:,.2f} M parameters on {context.world} x {found['device']}{threads}"

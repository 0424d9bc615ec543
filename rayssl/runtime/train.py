"""`rayssl train`: a TorchTrainer around the loop, resumed from the last checkpoint of the run's folder.

rayssl keeps its checkpoints itself, in the run's folder, and reports only figures to Ray Train: one format with and
without Ray, consistent with the memory, and readable by every other verb.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rayssl import collectives, storage
from rayssl.batches.plan import Cursor
from rayssl.batches.streams import Stream, joined
from rayssl.data import shards
from rayssl.errors import CheckpointError, ConfigError, Stopped, UserError
from rayssl.experiment.config import (
    Experiment,
    begin_from,
    build_method,
    class_settings,
    describe_memory,
    located,
    memory_settings,
    streams,
)
from rayssl.models.encoder import Encoder
from rayssl.runtime import cluster
from rayssl.training import checkpoint
from rayssl.training.loop import Loop
from rayssl.training.state import TrainState
from rayssl.training.stopping import Stopping
from rayssl.training.trackers import base
from rayssl.views.modules import build_recipes

_AHEAD_BYTES = 256 << 20  # decoded batches that wait in the object store for one rank


def train(experiment: Experiment, manifest: shards.Manifest, until: int | None = None) -> dict[str, Any]:
    """Trains, or goes on training, the run of ``experiment``; returns the last epoch's metrics.

    ``manifest`` is what `check` returned. Running it again on a finished run does nothing. ``until``: stops after so
    many epochs, all of them of a training of ``training.epochs``; called with more, it goes on as if it had not
    stopped. Raises `UserError` for what a user can mend; anything else restarts the workers from the last checkpoint,
    at most ``ray.max_failures`` times.
    """
    until = min(until or experiment.training.epochs, experiment.training.epochs)
    if _cursor(experiment).epoch >= until:
        meta = checkpoint.read_meta(checkpoint.locate(experiment.run, "last"))
        print(f"{experiment.run}: already trained to epoch {meta.epoch}; raise training.epochs to go on", flush=True)
        return meta.metrics
    experiment, workers = located(experiment), experiment.ray.workers
    memory = experiment.memory
    cluster.connect(cpus=workers * experiment.ray.cpus_per_worker + memory.actors * memory.cpus)
    settings = memory_settings(experiment, manifest)
    if settings is not None or class_settings(experiment, manifest) is not None:
        _check_actors(experiment)
    if settings is not None:
        print(describe_memory(settings, memory), flush=True)
    for attempt in range(experiment.ray.max_failures + 1):
        try:
            return _fit(experiment, manifest, until)
        except Exception as error:
            mistake = user_error(error)
            if mistake is not None:
                raise mistake from None
            if attempt == experiment.ray.max_failures:
                raise
            print(f"{experiment.run}: {_first_line(error)}; going on from the last checkpoint", flush=True)
    raise AssertionError("unreachable")


def check(experiment: Experiment) -> shards.Manifest:
    """What can be found wrong before a single worker starts; returns the corpus's manifest."""
    base.check(experiment.training.trackers, storage.absolute(experiment.run))
    manifest = shards.read_manifest(experiment.corpus.uri)
    method = build_method(experiment, manifest)
    own, _ = streams(experiment, manifest, method)
    memory_settings(experiment, manifest)
    class_settings(experiment, manifest)
    known = checkpoint.steps(experiment.run)
    if not known:
        begin_from(experiment, method)
    else:
        loaded = checkpoint.load(checkpoint.locate(experiment.run, "last"))
        checkpoint.load_module(method, loaded.state["method"], loaded.uri, experiment.architecture)
        _check_cursor(loaded, own.epoch_steps)
    return manifest


def _check_cursor(loaded: checkpoint.Loaded, steps: int) -> None:
    """Inside an epoch the batches that remain are known only for the corpus and batch it began with."""
    meta = loaded.meta
    if meta.step != meta.epoch * steps + meta.epoch_step:
        raise CheckpointError(
            f"{loaded.uri}: step {meta.step} is not in epoch {meta.epoch + 1} of {steps} steps: training.batch or the "
            "corpus has changed since; put them back or use another run folder"
        )


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` somewhere behind an error that Ray wrapped, or None."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        inner = getattr(current, "cause", None)  # Ray's own error, which poses as a subclass of the one it wraps
        if isinstance(current, UserError) and inner is None:
            return type(current)(_first_line(current))  # Ray Data appends advice of its own
        queue += [inner, current.__cause__, current.__context__]
        failures = getattr(current, "worker_failures", None)
        queue += list(failures.values()) if isinstance(failures, dict) else []
    return None


def _fit(experiment: Experiment, manifest: shards.Manifest, until: int) -> dict[str, Any]:
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = _use_gpu(experiment)
    options = ExecutionOptions()
    options.preserve_order = True
    # without a bound Ray Data reads epochs ahead, and its tasks take the cores that the first ones train on
    options.resource_limits = options.resource_limits.copy(object_store_memory=_AHEAD_BYTES * experiment.ray.workers)
    tree = experiment.model_dump(mode="json")
    scratch = tempfile.TemporaryDirectory(prefix="rayssl-train-")  # Ray Train's own notes, no checkpoints
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"experiment": tree, "manifest": manifest.model_dump(mode="json"), "until": until},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=experiment.ray.collective_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=experiment.ray.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": experiment.ray.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name=experiment.run.rstrip("/").rsplit("/", 1)[-1] + "-" + os.urandom(3).hex(),
            storage_path=scratch.name,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
        # evaluated anew at each start: the plan of what remains
        datasets={name: partial(_dataset, tree, manifest, name, until) for name in _streams(experiment, manifest)},
        dataset_config=DataConfig(execution_options=options),  # Train's own would drop those of the dataset
    )
    with scratch:
        _attended(trainer, experiment)
    # Ray Train keeps no figures without a checkpoint of its own
    return checkpoint.read_meta(checkpoint.locate(experiment.run, "last")).metrics


def _attended(trainer: Any, experiment: Experiment) -> None:
    """Fits; a signal makes all ranks save and leave at the same step, and raises `Stopped` once they have."""
    from rayssl.runtime import signals

    why = ""
    with signals.GracefulShutdown() as attended:
        trainer.train_loop_config["bell"] = attended.bell
        try:
            attended.run(trainer.fit, partial(print, flush=True))
        except Exception as error:
            if attended.received is None or user_error(error) is not None:
                raise
            why = f" ({_first_line(error)})"
    if attended.received is not None and _cursor(experiment).epoch < experiment.training.epochs:
        known = checkpoint.steps(experiment.run)
        at = f"step {known[-1]}" if known else "its beginning, nothing was saved"
        raise Stopped(f"{experiment.run}: stopped at {at}{why}; the same command goes on", attended.received)


def _check_actors(experiment: Experiment) -> None:
    """An actor for which no node has enough would wait for ever."""
    import ray

    config, cluster_has = experiment.memory, ray.cluster_resources()
    for key, resource, wanted in (("gpus", "GPU", config.gpus), ("memory_bytes", "memory", config.memory_bytes)):
        if wanted * config.shards > cluster_has.get(resource, 0.0):
            raise ConfigError(
                f"memory.{key}={wanted:g}: {config.shards} actors need {wanted * config.shards:g} and the cluster has "
                f"{cluster_has.get(resource, 0.0):g}; set memory.{key} lower, or 0"
            )


def _use_gpu(experiment: Experiment) -> bool:
    import ray

    config = experiment.memory
    available = ray.cluster_resources().get("GPU", 0.0) - config.gpus * config.shards
    wanted = experiment.ray.gpu
    if wanted is True and available < experiment.ray.workers:
        raise ConfigError(
            f"ray.gpu=true: {experiment.ray.workers} workers need as many GPUs and the cluster has {available:g} for "
            "them; set ray.gpu=false or ray.workers lower"
        )
    return available >= experiment.ray.workers if wanted == "auto" else wanted


def _cursor(experiment: Experiment) -> Cursor:
    """Where the run goes on: after its last checkpoint, or at the beginning."""
    known = checkpoint.steps(experiment.run)
    if not known:
        return Cursor()
    meta = checkpoint.read_meta(checkpoint.locate(experiment.run, "last"))
    return Cursor(meta.epoch, meta.epoch_step)


def _streams(experiment: Experiment, manifest: shards.Manifest) -> dict[str, Stream]:
    """The streams of the run by the names that Ray Train is given."""
    own, labelled = streams(experiment, manifest, build_method(experiment, manifest))
    return {"train": own} | ({} if labelled is None else {"labelled": labelled})


def _dataset(tree: dict[str, Any], manifest: shards.Manifest, name: str, until: int) -> Any:
    from rayssl.runtime import ingest

    experiment = Experiment(**tree)
    method, epochs = build_method(experiment, manifest), range(until)
    few = name == "labelled"
    return ingest.dataset(
        manifest,
        experiment.corpus.uri,
        _streams(experiment, manifest)[name],
        seed=experiment.seed,
        epoch_count=len(epochs),
        ranks=experiment.ray.workers,
        segments=[(method.labelled_segments if few else method.segments)(epoch) for epoch in epochs],
        fill_segments=[() if few else method.fill_segments(epoch) for epoch in epochs],
        start=_cursor(experiment),
        unit_rows=experiment.corpus.unit_rows,
        readers=experiment.corpus.readers,
    )


class _RayContext:
    """The loop's `Context` inside a Ray Train worker."""

    def __init__(self) -> None:
        import ray.train.torch

        self.rank = collectives.rank()
        self.world = collectives.world()
        self.device: torch.device = ray.train.torch.get_device()

    def report(self, metrics: dict[str, Any]) -> None:
        """To Ray Train, for its dashboard and for Tune."""
        import ray.train

        ray.train.report(metrics)

    def say(self, line: str) -> None:
        """To the worker's output, which Ray forwards to the driver's terminal."""
        print(line, flush=True)


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    from rayssl.runtime import ingest, signals

    logging.getLogger().setLevel(logging.WARNING)  # parts of Ray Train log each report to the root
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what is raised here the driver prints, once
    experiment = Experiment(**config["experiment"])
    manifest = shards.Manifest(**config["manifest"])
    torch.set_num_threads(max(1, int(experiment.ray.cpus_per_worker)))
    context = _RayContext()
    loop = build_loop(experiment, manifest, context)
    heard = signals.listen(config["bell"]) if context.rank == 0 else lambda: False
    loop.parts.stopping = Stopping(None if config["bell"] is None else heard)
    own, few = (
        ingest.batches(ray.train.get_dataset_shard(name), context.rank) if known else None
        for name, known in (("train", True), ("labelled", loop.parts.labelled_steps is not None))
    )
    assert own is not None
    log = loop.parts.log
    assert log is not None
    try:
        loop.fit(joined(own, few), config["until"])
    except BaseException:
        with suppress(Exception):  # what went wrong first is what is told
            log.close(failed=True)
        raise
    log.close()


def build_loop(experiment: Experiment, manifest: shards.Manifest, context: _RayContext) -> Loop:
    """The loop of one rank, restored from the run's last checkpoint where there is one; called on all ranks."""
    from rayssl.runtime.memory import actor as actors
    from rayssl.runtime.memory.classes import ActorClasses
    from rayssl.runtime.telemetry import open_log

    method = build_method(experiment, manifest).to(context.device)
    if experiment.training.compile:
        for part in method.modules():
            if type(part) is Encoder:  # a teacher's too; of two that are joined each for itself
                part.compile()
    settings, classes = memory_settings(experiment, manifest), class_settings(experiment, manifest)
    memory = None if settings is None else actors.connect(settings, experiment.memory, experiment.run)
    prototypes = None if classes is None else ActorClasses(classes, experiment.memory, experiment.run)
    own, labelled = streams(experiment, manifest, method)
    known = checkpoint.steps(experiment.run)
    loaded = checkpoint.load(checkpoint.locate(experiment.run, "last")) if known else None
    source = begin_from(experiment, method) if loaded is None else None
    wrapped: nn.Module = method
    if context.world > 1:
        devices = [context.device] if context.device.type == "cuda" else None
        wrapped = DistributedDataParallel(method, device_ids=devices)
    log = open_log(
        experiment,
        rank=context.rank,
        world=context.world,
        resume_step=loaded.meta.step if loaded else None,
        say=context.say,
    )
    loop = Loop(
        TrainState(
            config=experiment.training,
            run=experiment.run,
            seed=experiment.seed,
            steps_per_epoch=own.epoch_steps,
            architecture=experiment.architecture,
            method=method,
            wrapped=wrapped,
            recipes=build_recipes(experiment.views, manifest.rate, experiment.seed).to(context.device),
            context=context,
            memory=memory,
            prototypes=prototypes,
            log=log,
            pass_steps=own.pass_steps,
            labelled_steps=None if labelled is None else labelled.pass_steps,
        )
    )
    if loaded is not None:
        loop.restore(loaded)
        context.say(f"rank {context.rank}: going on from {loaded.uri} (step {loaded.meta.step})")
    elif source is not None and context.rank == 0:
        context.say(f"beginning with the weights of {source}")
    return loop


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""Builds the objects that train a job. Ray workers, training without Ray and the tests all use this builder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rayssl import collectives
from rayssl.batches.plan import Cursor
from rayssl.errors import DamagedCheckpoint
from rayssl.experiment import hardware
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import Job, position
from rayssl.experiment.judging import judge_of
from rayssl.methods.base import Method
from rayssl.models.encoder import Encoder, build_encoder
from rayssl.models.layout import placed
from rayssl.models.nightmel import NightMelConfig
from rayssl.models.norm import set_sync
from rayssl.random import draws
from rayssl.training import checkpoint, weights
from rayssl.training.context import Context
from rayssl.training.kernels import compile_encoders
from rayssl.training.loop import Loop
from rayssl.training.nights import NightInput
from rayssl.training.state import TrainState
from rayssl.views.modules import build_night_recipes, build_recipes


def build_run_encoder(experiment: Experiment, rate: int) -> Encoder:
    """The experiment's encoder, with weights drawn from its seed."""
    torch.manual_seed(draws.fold(experiment.seed, 5) >> 1)
    return build_encoder(experiment.encoder, rate, experiment.training.sync_batchnorm)


def build_method(job: Job) -> Method:
    """The job's method, with weights drawn from its seed: they are the same on every rank.

    A rank builds this one network and no other.
    """
    return _method(job, build_run_encoder(job.experiment, job.manifest.rate))


def _method(job: Job, encoder: Encoder) -> Method:
    method = job.experiment.method.build(encoder, job.facts)
    set_sync(method, job.experiment.training.sync_batchnorm)
    return method


def start_encoder(job: Job, encoder: Encoder) -> str | None:
    """Gives the encoder of a new run the weights that ``encoder.start_from`` names. Returns their URI.

    This must come before the method is built, which may copy the encoder, for example for a teacher. Returns None if
    nothing is named, or if the run has checkpoints. Raises `UserError` if the weights do not fit.
    """
    config = job.experiment.encoder
    if config.start_from is None or checkpoint.steps(job.run):
        return None
    return weights.start(encoder, config, config.start_from)


def pretrain(job: Job, method: Method) -> str | None:
    """Loads the weights that the method's configuration names as its start. Returns the checkpoint's URI.

    Returns None if it names none. Raises `CheckpointError` if the checkpoint does not exist, or has another
    architecture.
    """
    start = job.experiment.method.starts_from
    return None if start is None else checkpoint.load_weights(method.pretrained, start, job.architecture)


def check_start(job: Job, say: Callable[[str], None] = lambda line: None) -> Cursor:
    """Where the job starts, with the checkpoint that it starts from checked, before any worker starts.

    A damaged one is left out if there is one before; ``say`` takes the line about it. Raises `CheckpointError`.

    Call this once before `train` of `rayssl.runtime.train` or `rayssl.experiment.local`: it reads the whole checkpoint.
    It builds a network only if the checkpoint says that it has another architecture.
    """
    while True:
        try:
            return _checked_start(job)
        except DamagedCheckpoint as error:
            line = checkpoint.go_back(job.run, error)
            if line is None:
                raise
            say(line)


def _checked_start(job: Job) -> Cursor:
    start = position(job)
    if not checkpoint.steps(job.run):
        if job.experiment.encoder.start_from is not None:
            start_encoder(job, build_run_encoder(job.experiment, job.manifest.rate))
        return start
    loaded = checkpoint.load(checkpoint.locate(job.run, "last"))
    if loaded.meta.architecture != job.architecture:
        checkpoint.load_module(build_method(job), loaded.state["method"], loaded.uri, job.architecture)
    return start


def _recipes(job: Job, context: Context) -> nn.ModuleDict:
    experiment, rate, frontend = job.experiment, job.manifest.rate, _night_frontend(job)
    if frontend is not None:
        return build_night_recipes(experiment.views, frontend.mel, rate, experiment.seed, context.bank)
    return build_recipes(experiment.views, rate, experiment.seed, context.bank)


def _night_frontend(job: Job) -> NightMelConfig | None:
    """The front end that makes pictures of sequences; None if the method does not take sequences."""
    frontend = job.experiment.encoder.frontend
    return frontend if job.experiment.method.sequences and isinstance(frontend, NightMelConfig) else None


def _night_input(job: Job, context: Context) -> NightInput | None:
    frontend = _night_frontend(job)
    if frontend is None:
        return None
    return NightInput(job.manifest, job.facts.sequence, frontend).to(context.device)


def _last(job: Job) -> checkpoint.Loaded | None:
    """The run's last checkpoint; None for a new run."""
    return checkpoint.load(checkpoint.locate(job.run, "last")) if checkpoint.steps(job.run) else None


def _repeats(job: Job) -> bool:
    """`rayssl.training.state.TrainState.repeats`: a strict memory is promised to resume with the same bits."""
    return job.experiment.memory.sync == "strict" and not (job.utterances is None and job.classes is None)


def build_loop(job: Job, context: Context) -> Loop:
    """Builds the loop of one rank, and restores it from the run's last checkpoint if there is one.

    Every rank must call this.

    Args:
        job: what to train, from `rayssl.experiment.job.resolve`.
        context: the process that the loop runs in, such as `rayssl.experiment.local.LocalContext`.

    Returns:
        The loop, ready for `Loop.fit`.

    Raises:
        CheckpointError: the last checkpoint, or the one that the method starts from, does not fit the job.
        ConfigError, CorpusError: a corpus of noises or rooms cannot be used.
    """
    experiment, training = job.experiment, job.experiment.training
    encoder = build_run_encoder(experiment, job.manifest.rate)
    # one rank reads the weights to start from, and `wrap` gives the others rank 0's
    source = collectives.on_rank_0(lambda: start_encoder(job, encoder))
    method = placed(_method(job, encoder), context.device)
    compile_encoders(method, training, context, job.own.epoch_steps, repeats=_repeats(job))
    memory = None if job.utterances is None else context.utterance_memory(job.utterances)
    prototypes = None if job.classes is None else context.class_memory(job.classes)
    loaded = collectives.on_rank_0(lambda: _last(job))  # one rank reads it from storage
    if loaded is None:
        source = collectives.on_rank_0(lambda: pretrain(job, method)) or source
    wrapped = context.wrap(method)
    log = context.open_log(loaded.meta.step if loaded else None)
    loop = Loop(
        TrainState(
            config=training,
            run=job.run,
            seed=experiment.seed,
            steps_per_epoch=job.own.epoch_steps,
            architecture=job.architecture,
            method=method,
            wrapped=wrapped,
            recipes=_recipes(job, context).to(context.device),
            segments=job.segments,
            context=context,
            memory=memory,
            prototypes=prototypes,
            class_settings=job.classes,
            log=log,
            pass_steps=job.own.pass_steps,
            labelled_steps=None if job.labelled is None else job.labelled.pass_steps,
            nights=_night_input(job, context),
            ahead=1 if memory is None else experiment.memory.ahead,
            repeats=_repeats(job),
            judge=judge_of(job, context.device),
        )
    )
    if context.rank == 0:
        hardware.note(job.run, hardware.describe(method, context.device, context.world))
    if loaded is not None:
        loop.restore(loaded)
    if context.rank == 0:
        _say_where_it_begins(job, context, loaded, source)
    return loop


def _say_where_it_begins(job: Job, context: Context, loaded: checkpoint.Loaded | None, source: str | None) -> None:
    if loaded is not None:
        total = job.own.epoch_steps * job.experiment.training.epochs
        context.say(f"resumed from {loaded.uri} (step {loaded.meta.step} of {total})")
    elif source is not None:
        context.say(f"beginning with the weights of {source}")

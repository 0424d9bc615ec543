"""What a command finds that is to train a run which has come to its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rayssl.experiment.build import build_method
from rayssl.experiment.job import Job, position
from rayssl.experiment.judging import judge_of
from rayssl.training import checkpoint, validating
from rayssl.training.metrics import RunLog


def ended(job: Job, until: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The metrics of the last epoch, if nothing is left to train to the end of epoch ``until``; else None.

    If a process died in the last validation, it is made up for here. Raises `UserError`.
    """
    position(job)  # raises if the last checkpoint does not fit
    if not checkpoint.steps(job.run):
        return None
    uri, training = checkpoint.locate(job.run, "last"), job.experiment.training
    meta = checkpoint.read_meta(uri)
    stopped = meta.epoch_step == 0 and validating.exhausted(training.validate, meta.validated)
    if meta.epoch < until and not stopped:
        return None
    if validating.pending(training.validate, training.epochs, meta.epoch, meta.epoch_step, meta.validated):
        say(f"{job.run}: validates epoch {meta.epoch}, which was not validated yet")
        meta = _made_up(job, uri)
    how = "raise training.epochs to train more"
    if stopped:
        how = "training.validate.patience ended it; raise that to train more"
    say(f"{job.run}: already trained to epoch {meta.epoch}; {how}")
    return meta.metrics


def _made_up(job: Job, uri: str) -> checkpoint.Meta:
    """Validates the checkpoint at ``uri``, the last one of the run, in this process."""
    experiment, device = job.experiment, torch.device("cpu")
    judge, config = judge_of(job, device), experiment.training.validate
    assert judge is not None and config is not None
    loaded = checkpoint.load(uri)
    with torch.random.fork_rng(devices=[]):
        method = build_method(job)
    checkpoint.load_module(method, loaded.state["method"], uri, job.architecture)
    meta = loaded.meta
    figures = judge.figures(method, meta.metrics)
    standing = validating.stood(config, experiment.method.loss_changes_after, meta.validated, meta.epoch, figures)
    log = RunLog(job.run, meta.step)
    try:
        prune = partial(checkpoint.prune, job.run, experiment.training.checkpoints, experiment.best)
        validating.record(job.run, meta, figures, standing, log, prune)
    finally:
        log.close()
    return checkpoint.read_meta(uri)

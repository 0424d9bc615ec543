"""Reads a run's folder: its configuration, and the place of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from rayssl import storage
from rayssl.errors import CheckpointError, ConfigError
from rayssl.experiment.config import Experiment, located
from rayssl.schema import load_yaml, override, parse
from rayssl.training import checkpoint, weights


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a run: the ``experiment`` of the folder ``run``, and the checkpoint at the URI ``uri``.

    ``step`` is the number of optimiser steps. ``digest`` is the SHA-256 of the checkpoint's weights: a copy of the run
    has the same one.
    """

    run: str
    experiment: Experiment
    uri: str
    step: int
    digest: str

    @property
    def checkpoint(self) -> str:
        """The checkpoint's name: ``step-0000001234``."""
        return self.uri.rsplit("/", 1)[-1]


def read_run(run: str, overrides: list[str]) -> Experiment:
    """The experiment in a run's folder, changed by ``overrides``. Raises `ConfigError` if the folder has none."""
    path = storage.join(run, "config.yaml")
    if not storage.exists(path):
        raise ConfigError(f"{run}: no config.yaml there; give the folder of a run that 'rayssl train' wrote")
    return parse(Experiment, override(load_yaml(storage.read_text(path), path), overrides), path)


def find(run: str, which: str = "last", overrides: list[str] | None = None) -> RunCheckpoint:
    """Finds the checkpoint ``which`` of the run in the folder ``run``: ``last``, ``best``, ``epoch-N`` or ``step-N``.

    ``run`` may also be a published folder, which has only ``last``. It does not read weights. Raises `UserError` naming
    the run if it has no configuration or no such checkpoint.
    """
    if weights.is_published(run):
        return _published(run, which, overrides or [])
    experiment = located(read_run(run, overrides or []))
    run = storage.absolute(run)
    uri = checkpoint.locate(run, which, experiment.best)
    meta = checkpoint.read_meta(uri)
    return RunCheckpoint(run, experiment, uri, meta.step, str(meta.files.get("state.pt", {}).get("sha256", "")))


def _published(folder: str, which: str, overrides: list[str]) -> RunCheckpoint:
    if which != "last":
        raise CheckpointError(f"{folder}: is a published encoder, which has no checkpoint '{which}'; leave it out")
    experiment, about = read_run(folder, overrides), weights.about(folder)
    folder = storage.absolute(folder)
    return RunCheckpoint(folder, experiment, folder, int(about["step"]), str(about["sha256"]))

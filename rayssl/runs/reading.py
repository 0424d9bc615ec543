"""A run's folder read back: its configuration, and a checkpoint of it."""

from __future__ import annotations

from dataclasses import dataclass

from rayssl import storage
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment, located
from rayssl.schema import load_yaml, override, parse
from rayssl.training import checkpoint


@dataclass(frozen=True)
class RunCheckpoint:
    """Where embeddings come from: the ``experiment`` of the folder ``run``, and its checkpoint at the URI ``uri``.

    ``digest`` is the SHA-256 of that checkpoint's weights, the same wherever the run has been copied to.
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
    """The experiment that a run's folder holds, with overrides on top; raises `ConfigError` where there is none."""
    path = storage.join(run, "config.yaml")
    if not storage.exists(path):
        raise ConfigError(f"{run}: no config.yaml there; give the folder of a run that 'rayssl train' wrote")
    return parse(Experiment, override(load_yaml(storage.read_text(path), path), overrides), path)


def find(run: str, which: str = "last", overrides: list[str] | None = None) -> RunCheckpoint:
    """A checkpoint of the run in the folder ``run``: ``last``, ``best``, ``epoch-N`` or ``step-N``.

    Raises `UserError` naming the run where there is no configuration or no such checkpoint. Weights are not read yet.
    """
    experiment = located(read_run(run, overrides or []))
    run = storage.absolute(run)
    uri = checkpoint.locate(run, which, experiment.training.checkpoints.best)
    meta = checkpoint.read_meta(uri)
    return RunCheckpoint(run, experiment, uri, meta.step, str(meta.files.get("state.pt", {}).get("sha256", "")))

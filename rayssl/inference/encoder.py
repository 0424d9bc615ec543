"""Loads the frozen encoder of a run's checkpoint. Everything that embeds uses it."""

from __future__ import annotations

from rayssl.experiment.build import build_run_encoder
from rayssl.experiment.config import Experiment
from rayssl.models.encoder import Encoder
from rayssl.training import checkpoint


def load_encoder(experiment: Experiment, checkpoint_uri: str, rate: int) -> Encoder:
    """The frozen encoder of a checkpoint. Raises `CheckpointError` if it does not fit the run's configuration."""
    return encoder_of(experiment, checkpoint.load(checkpoint_uri), rate)


def encoder_of(experiment: Experiment, loaded: checkpoint.Loaded, rate: int) -> Encoder:
    """`load_encoder` for a checkpoint that has been read."""
    prefix = loaded.state["encoder_prefix"]
    encoder = build_run_encoder(experiment, rate)
    weights = {name[len(prefix) :]: value for name, value in loaded.state["method"].items() if name.startswith(prefix)}
    checkpoint.load_module(encoder, weights, loaded.uri, experiment.architecture)
    return encoder.eval().requires_grad_(False)

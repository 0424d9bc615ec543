"""Loads the frozen encoder of a run's checkpoint. Everything that embeds uses it."""

from __future__ import annotations

from torch import Tensor

from rayssl.experiment.build import build_run_encoder
from rayssl.experiment.config import Experiment
from rayssl.models.encoder import Encoder
from rayssl.training import checkpoint


def load_encoder(experiment: Experiment, checkpoint_uri: str, rate: int) -> Encoder:
    """The frozen encoder of a checkpoint. Raises `CheckpointError` if it does not fit the run's configuration."""
    return encoder_of(experiment, checkpoint.load(checkpoint_uri, mapped=True), rate)


def encoder_of(experiment: Experiment, loaded: checkpoint.Loaded, rate: int) -> Encoder:
    """`load_encoder` for a checkpoint that has been read."""
    prefix = loaded.state["encoder_prefix"]
    encoder = build_run_encoder(experiment, rate)
    weights = {name[len(prefix) :]: value for name, value in loaded.state["method"].items() if name.startswith(prefix)}
    checkpoint.load_module(encoder, weights, loaded.uri, experiment.architecture)
    return encoder.eval().requires_grad_(False)


def head_of(loaded: checkpoint.Loaded) -> tuple[Tensor, Tensor] | None:
    """The weight ``[C, D]`` and the bias ``[C]`` of the linear classifier of a checkpoint; None if it has none."""
    prefix = loaded.state.get("head_prefix")
    if prefix is None:
        return None
    weight, bias = (loaded.state["method"].get(f"{prefix}linear.{name}") for name in ("weight", "bias"))
    return None if weight is None or bias is None else (weight.float().clone(), bias.float().clone())

"""Loads the frozen encoder of a run's checkpoint, or of a published folder. Everything that embeds uses it."""

from __future__ import annotations

from rayssl.errors import CheckpointError
from rayssl.experiment.build import build_run_encoder
from rayssl.experiment.config import Experiment
from rayssl.models.encoder import Encoder
from rayssl.training import checkpoint, weights
from rayssl.training.weights import EncoderWeights


def load_encoder(experiment: Experiment, uri: str, rate: int) -> Encoder:
    """The frozen encoder of a checkpoint or a published folder.

    Raises `CheckpointError` if it does not fit the run's configuration.
    """
    return encoder_of(experiment, weights.of_run(uri), rate)


def encoder_of(experiment: Experiment, found: EncoderWeights, rate: int) -> Encoder:
    """`load_encoder` for weights that have been read."""
    encoder = build_run_encoder(experiment, rate)
    problem = checkpoint.mismatch(encoder, found.state)
    if problem is not None:
        raise CheckpointError(
            f"{found.uri}: the checkpoint is of another architecture, {found.described}: {problem}; this run's is "
            f"{experiment.architecture}; use the run's own config.yaml or another run folder"
        )
    encoder.load_state_dict(found.state)
    return encoder.eval().requires_grad_(False)

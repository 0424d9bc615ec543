"""Loads the frozen encoder of a run's checkpoint, or of a published folder. Everything that embeds uses it."""

from __future__ import annotations

import numpy as np
import torch

from rayssl.errors import CheckpointError, ConfigError
from rayssl.experiment.build import build_run_encoder
from rayssl.experiment.config import Experiment
from rayssl.models.encoder import Encoder
from rayssl.training import checkpoint, weights
from rayssl.training.weights import EncoderWeights

_ROWS = 4096  # of one call of the layers, which bounds their memory


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


class Projection:
    """The frozen layers between a run's encoder and what its loss compares, on the CPU."""

    def __init__(self, experiment: Experiment, uri: str) -> None:
        """Loads them from the checkpoint at ``uri``.

        Raises `ConfigError` if the method has none, and `CheckpointError` if they do not fit the run's configuration.
        """
        method = experiment.method
        found = method.projection(experiment.encoder.embedding_dim)
        if found is None:
            raise ConfigError(
                f"evaluation.embedding=projection: method.name={method.name} has no layers after the encoder here; "
                "leave it out"
            )
        prefix, self._layers = found
        whole = checkpoint.load(uri).state["method"]
        state = {name: whole[prefix + name] for name in self._layers.state_dict() if prefix + name in whole}
        problem = checkpoint.mismatch(self._layers, state)
        if problem is not None:
            raise CheckpointError(
                f"{uri}: the layers after the encoder are of another architecture: {problem}; use the run's own "
                "config.yaml"
            )
        self._layers.load_state_dict(state)
        self._layers.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """The projections float32 ``[N, D_emb]`` of ``embeddings [N, D]``, which are not normalised."""
        parts = torch.from_numpy(np.array(embeddings, np.float32)).split(_ROWS)
        return torch.cat([self._layers(part) for part in parts]).float().numpy()

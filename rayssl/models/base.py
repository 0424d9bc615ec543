"""The two interfaces of an encoder: a front end turns samples into features, a backbone features into an embedding.

A new backbone, in a file of your own::

    class Average(Backbone):
        class Config(BackboneConfig):
            embedding_dim: int = 64

        def __init__(self, config: Config, features: int) -> None:
            super().__init__()
            self.project = nn.Linear(features, config.embedding_dim)

        def forward(self, features: Tensor) -> Tensor:  # [B, F, T] to [B, embedding_dim]
            return self.project(features.mean(dim=2))

with ``encoder: {backbone: {name: average.py:Average}}`` in the YAML.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import nn

from rayssl.registry import ComponentConfig, Configurable

# The shape of features: bands over time [B, F, T], samples [B, 1, T], channels of bands over time [B, C, F, T], or
# pictures of N consecutive epochs of sleep [B, N, F, T]
Layout: TypeAlias = Literal["bands", "samples", "planes", "epochs"]


class FrontendConfig(ComponentConfig):
    """The settings of a front end, and the shape of its features."""

    #: The shape of the features, see `Layout`.
    layout: ClassVar[Layout] = "bands"

    @property
    def features(self) -> int:
        """The number of bands for the layout "bands", of channels for "planes"; 1 for "samples"."""
        return 1

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if the settings do not fit audio at ``rate`` Hz. The default accepts all settings."""

    def build(self, rate: int) -> Frontend:
        """Makes the front end for audio at ``rate`` Hz: calls its class with the settings and ``rate``."""
        made: Frontend = self._make(rate)
        return made


class Frontend(nn.Module, Configurable):
    """Samples ``[B, T]`` in [-1, 1] to float32 features in the `FrontendConfig.layout`. It has no trained weights.

    A subclass must implement ``forward`` and `samples_for`.
    """

    def samples_for(self, frames: int) -> int:
        """The smallest number of samples that makes ``frames`` frames."""
        raise NotImplementedError


class BackboneConfig(ComponentConfig):
    """The settings of a backbone: the dimension of its embeddings, and the layouts of features that it accepts."""

    embedding_dim: int = Field(default=512, ge=1)

    #: The layouts of features that it accepts.
    layouts: ClassVar[tuple[Layout, ...]] = ("bands",)

    def build(self, frontend: FrontendConfig) -> Backbone:
        """Makes the network for the features of ``frontend``, with initial weights.

        It calls the class of the backbone with the settings and ``frontend.features``.
        """
        made: Backbone = self._make(frontend.features)
        return made


class Backbone(nn.Module, Configurable):
    """Features, in one of the `BackboneConfig.layouts`, to embeddings ``[B, embedding_dim]``, not normalised.

    A subclass must implement ``forward``.
    """

    #: The smallest number of frames that it accepts.
    least_frames: int = 1

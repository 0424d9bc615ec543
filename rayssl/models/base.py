"""The two seams of an encoder: a front end makes features of samples, a backbone makes an embedding of features."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import nn

from rayssl.registry import ComponentConfig, Configurable

# What a front end gives: bands over time [B, F, T], samples [B, 1, T], or channels of bands over time [B, C, F, T]
Layout: TypeAlias = Literal["bands", "samples", "planes"]


class FrontendConfig(ComponentConfig):
    """The settings of a front end, and what it gives."""

    #: The shape of the features.
    layout: ClassVar[Layout] = "bands"

    @property
    def features(self) -> int:
        """How many bands there are, or of planes how many channels; 1 for samples."""
        return 1

    def check(self, rate: int) -> None:
        """Raises `ConfigError` for settings that do not fit audio at ``rate`` Hz."""

    def build(self, rate: int) -> Frontend:
        """The front end for ``rate`` Hz."""
        made: Frontend = self._make(rate)
        return made


class Frontend(nn.Module, Configurable):
    """Samples ``[B, T]`` in [-1, 1] to float32 features in the `FrontendConfig.layout`; without trained weights."""

    def samples_for(self, frames: int) -> int:
        """The fewest samples that make ``frames`` frames."""
        raise NotImplementedError


class BackboneConfig(ComponentConfig):
    """The settings of a backbone: ``embedding_dim`` D of what it gives, and the layouts that it takes."""

    embedding_dim: int = Field(default=512, ge=1)

    #: The shapes of features that it takes.
    layouts: ClassVar[tuple[Layout, ...]] = ("bands",)

    def build(self, frontend: FrontendConfig) -> Backbone:
        """The network over the features of ``frontend``, with freshly drawn weights."""
        made: Backbone = self._make(frontend.features)
        return made


class Backbone(nn.Module, Configurable):
    """Features, in one of the `BackboneConfig.layouts`, to embeddings ``[B, embedding_dim]``, not normalised."""

    #: The fewest frames that it takes.
    least_frames: int = 1

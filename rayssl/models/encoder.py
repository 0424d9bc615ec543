"""The encoder, built from its configuration: samples to one embedding per utterance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import model_validator
from torch import Tensor, nn

from rayssl.models.ecapa import EcapaConfig
from rayssl.models.frontends import FeatureMask, FeatureMaskConfig, LogMelConfig
from rayssl.models.norm import set_sync
from rayssl.models.registry import BACKBONES, FRONTENDS, AnyBackbone, AnyFrontend
from rayssl.registry import ComponentConfig
from rayssl.schema import Config


class EncoderConfig(Config):
    """The parts of an encoder.

    ``frontend`` makes the features; its default name is "logmel". ``masks`` cover features in training. ``backbone`` is
    the network; it must accept the layout of the features. ``beside`` is a second encoder for the same samples. Its
    embedding is appended to the embedding of the first.
    """

    frontend: AnyFrontend = LogMelConfig()
    masks: FeatureMaskConfig = FeatureMaskConfig()
    backbone: AnyBackbone = EcapaConfig()
    beside: EncoderConfig | None = None

    @property
    def embedding_dim(self) -> int:
        """The dimension of the whole embedding, with the one of ``beside``."""
        return self.backbone.embedding_dim + (0 if self.beside is None else self.beside.embedding_dim)

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        features, network = self.frontend, self.backbone
        if features.layout not in network.layouts:
            ours = [each for each in map(BACKBONES.find, BACKBONES.builtin) if features.layout in each.layouts]
            others = [each for each in map(FRONTENDS.find, FRONTENDS.builtin) if each.layout in network.layouts]
            raise ValueError(
                f"encoder.frontend.name={features.name} does not fit encoder.backbone.name={network.name}: "
                f"{features.short_name} goes with {_either(ours)}, {network.short_name} with {_either(others)}"
            )
        if features.layout == "samples" and self.masks.p > 0:
            raise ValueError(
                f"encoder.masks.p={self.masks.p:g}: masks cover bands and frames, which encoder.frontend.name="
                f"{features.name} does not have; leave encoder.masks out"
            )
        return self

    def located(self) -> EncoderConfig:
        """A copy with absolute paths; see `rayssl.registry.ComponentConfig.located`."""
        beside = None if self.beside is None else self.beside.located()
        changes = {"frontend": self.frontend.located(), "backbone": self.backbone.located(), "beside": beside}
        return self.model_copy(update=changes)

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if the settings do not fit audio at ``rate`` Hz."""
        self.frontend.check(rate)
        if self.beside is not None:
            self.beside.check(rate)


class Encoder(nn.Module):
    """Samples ``[B, T]`` in [-1, 1] to embeddings ``[B, embedding_dim]``, float32, not normalised.

    ``minimum_samples`` is the smallest T that it accepts.
    """

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        super().__init__()
        self.frontend = config.frontend.build(rate)
        self.masks = FeatureMask(config.masks)
        self.backbone = config.backbone.build(config.frontend)
        self.embedding_dim = config.backbone.embedding_dim
        self.minimum_samples = self.frontend.samples_for(self.backbone.least_frames)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """Embeds ``wave [B, T]``. In training mode, features are masked if ``keys [B]`` int64 are given.

        No gradient flows to ``wave``.
        """
        features = self.frontend(wave)
        if keys is not None and self.training:
            features = self.masks(features, keys)
        # Losses divide similarities by temperatures of a few hundredths: bfloat16 is not precise enough
        embedding: Tensor = self.backbone(features)
        return embedding.float()


class Joined(Encoder):
    """Two encoders for the same samples. Their embeddings are concatenated."""

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        nn.Module.__init__(self)
        assert config.beside is not None
        self.first = Encoder(config, rate)
        self.second = build_encoder(config.beside, rate)
        self.embedding_dim = config.embedding_dim
        self.minimum_samples = max(self.first.minimum_samples, self.second.minimum_samples)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """As `Encoder.forward`. The masks of both encoders are drawn from the same keys."""
        return torch.cat([self.first(wave, keys), self.second(wave, keys)], dim=1)


def build_encoder(config: EncoderConfig, rate: int = 16000, sync_batchnorm: bool = False) -> Encoder:
    """An encoder with initial weights, for audio at ``rate`` Hz.

    With ``sync_batchnorm``, batch normalisation in training mode uses the statistics of all ranks.
    """
    encoder = Encoder(config, rate) if config.beside is None else Joined(config, rate)
    set_sync(encoder, sync_batchnorm)
    return encoder


def _either(models: Sequence[type[ComponentConfig]]) -> str:
    names = [str(model.model_fields["name"].default) for model in models] or ["no other built-in one"]
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last

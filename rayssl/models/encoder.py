"""The encoder: samples to one embedding, from its configuration."""

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
    """Features (``frontend.name``, "logmel" where not given), masks over them in training, and the network
    (``backbone.name``), which must be one for such features. ``beside``: a second encoder of the same samples, whose
    embedding is appended to the first one's.
    """

    frontend: AnyFrontend = LogMelConfig()
    masks: FeatureMaskConfig = FeatureMaskConfig()
    backbone: AnyBackbone = EcapaConfig()
    beside: EncoderConfig | None = None

    @property
    def embedding_dim(self) -> int:
        """Of the whole embedding."""
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
        """The same with absolute paths; see `rayssl.registry.ComponentConfig.located`."""
        beside = None if self.beside is None else self.beside.located()
        changes = {"frontend": self.frontend.located(), "backbone": self.backbone.located(), "beside": beside}
        return self.model_copy(update=changes)

    def check(self, rate: int) -> None:
        """Raises `ConfigError` for settings that do not fit audio at ``rate`` Hz."""
        self.frontend.check(rate)
        if self.beside is not None:
            self.beside.check(rate)


class Encoder(nn.Module):
    """Samples ``[B, T]`` in [-1, 1] to embeddings ``[B, embedding_dim]``, float32, not normalised.

    ``minimum_samples``: what T must be at the least.
    """

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        super().__init__()
        self.frontend = config.frontend.build(rate)
        self.masks = FeatureMask(config.masks)
        self.backbone = config.backbone.build(config.frontend)
        self.embedding_dim = config.backbone.embedding_dim
        self.minimum_samples = self.frontend.samples_for(self.backbone.least_frames)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """Masks features in training where ``keys [B]`` int64 are given; gradients reach neither ``wave`` nor masks."""
        features = self.frontend(wave)
        if keys is not None and self.training:
            features = self.masks(features, keys)
        # Losses compare embeddings at temperatures of a few hundredths: not in bfloat16
        embedding: Tensor = self.backbone(features)
        return embedding.float()


class Joined(Encoder):
    """Two encoders of the same samples: their embeddings one after the other."""

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        nn.Module.__init__(self)
        assert config.beside is not None
        self.first = Encoder(config, rate)
        self.second = build_encoder(config.beside, rate)
        self.embedding_dim = config.embedding_dim
        self.minimum_samples = max(self.first.minimum_samples, self.second.minimum_samples)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """As `Encoder.forward`; masks of both are drawn from the same keys."""
        return torch.cat([self.first(wave, keys), self.second(wave, keys)], dim=1)


def build_encoder(config: EncoderConfig, rate: int = 16000, sync_batchnorm: bool = False) -> Encoder:
    """An encoder with freshly initialised weights; ``sync_batchnorm`` takes training statistics over all ranks."""
    encoder = Encoder(config, rate) if config.beside is None else Joined(config, rate)
    set_sync(encoder, sync_batchnorm)
    return encoder


def _either(models: Sequence[type[ComponentConfig]]) -> str:
    names = [str(model.model_fields["name"].default) for model in models] or ["no other of ours"]
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last

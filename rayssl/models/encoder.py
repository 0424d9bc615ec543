"""The encoder: samples to one embedding, from its configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from rayssl.models.ecapa import Ecapa, EcapaConfig
from rayssl.models.fast_resnet34 import FastResnet34, FastResnet34Config
from rayssl.models.frontends import FeatureMask, FeatureMaskConfig, LogMel, LogMelConfig
from rayssl.models.norm import set_sync
from rayssl.schema import Config

BackboneConfig = Annotated[EcapaConfig | FastResnet34Config, Field(discriminator="name")]


class EncoderConfig(Config):
    """Features, masks over them in training, and the network, chosen by ``backbone.name``."""

    frontend: LogMelConfig = LogMelConfig()
    masks: FeatureMaskConfig = FeatureMaskConfig()
    backbone: BackboneConfig = EcapaConfig()


class Encoder(nn.Module):
    """Samples ``[B, T]`` in [-1, 1] to embeddings ``[B, embedding_dim]``, float32, not normalised."""

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        super().__init__()
        self.frontend = LogMel(config.frontend, rate)
        self.masks = FeatureMask(config.masks)
        self.backbone = _build_backbone(config.backbone, config.frontend.n_mels)
        self.embedding_dim = config.backbone.embedding_dim

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """Masks features in training where ``keys [B]`` int64 are given; gradients reach neither ``wave`` nor masks."""
        features = self.frontend(wave)
        if keys is not None and self.training:
            features = self.masks(features, keys)
        # Losses compare embeddings at temperatures of a few hundredths: not in bfloat16
        return self.backbone(features).float()  # type: ignore[no-any-return]


def build_encoder(config: EncoderConfig, rate: int = 16000, sync_batchnorm: bool = False) -> Encoder:
    """An encoder with freshly initialised weights; ``sync_batchnorm`` takes training statistics over all ranks."""
    encoder = Encoder(config, rate)
    set_sync(encoder, sync_batchnorm)
    return encoder


def _build_backbone(config: EcapaConfig | FastResnet34Config, features: int) -> nn.Module:
    if isinstance(config, EcapaConfig):
        return Ecapa(config, features)
    return FastResnet34(config, features)

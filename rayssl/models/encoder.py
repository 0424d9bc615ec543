"""The encoder: samples to one embedding, from its configuration."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from rayssl.models.ecapa import Ecapa, EcapaConfig
from rayssl.models.fast_resnet34 import FastResnet34, FastResnet34Config
from rayssl.models.frontends import FeatureMask, FeatureMaskConfig, LogMel, LogMelConfig, Raw, RawConfig
from rayssl.models.norm import set_sync
from rayssl.models.resnet1d import Resnet1d, Resnet1dConfig
from rayssl.models.resnet2d import Resnet2d, Resnet2dConfig
from rayssl.models.spectrum import Spectrum, SpectrumConfig
from rayssl.schema import Config


def _frontend_name(given: Any) -> Any:
    """What tells frontends apart: their name, "logmel" where none is given, as there once was no other."""
    return given.get("name", "logmel") if isinstance(given, dict) else getattr(given, "name", "logmel")


FrontendConfig = Annotated[
    Annotated[LogMelConfig, Tag("logmel")]
    | Annotated[RawConfig, Tag("raw")]
    | Annotated[SpectrumConfig, Tag("spectrum")],
    Discriminator(_frontend_name),
]
BackboneConfig = Annotated[
    EcapaConfig | FastResnet34Config | Resnet1dConfig | Resnet2dConfig, Field(discriminator="name")
]

# By frontend: bands over time, samples over time, channels of bands over time
_FITTING: dict[str, tuple[str, ...]] = {
    "logmel": ("ecapa", "fast_resnet34", "resnet2d"),
    "raw": ("resnet1d",),
    "spectrum": ("resnet2d",),
}


class EncoderConfig(Config):
    """Features (``frontend.name``, "logmel" where not given), masks over them in training, and the network
    (``backbone.name``), which must be one for such features. ``beside``: a second encoder of the same samples, whose
    embedding is appended to the first one's.
    """

    frontend: FrontendConfig = LogMelConfig()
    masks: FeatureMaskConfig = FeatureMaskConfig()
    backbone: BackboneConfig = EcapaConfig()
    beside: EncoderConfig | None = None

    @property
    def embedding_dim(self) -> int:
        """Of the whole embedding."""
        return self.backbone.embedding_dim + (0 if self.beside is None else self.beside.embedding_dim)

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        features, network = self.frontend.name, self.backbone.name
        if network not in _FITTING[features]:
            others = [name for name, networks in _FITTING.items() if network in networks]
            raise ValueError(
                f"encoder.frontend.name={features} does not fit encoder.backbone.name={network}: {features} goes with "
                f"{_either(_FITTING[features])}, {network} with {_either(others)}"
            )
        if features == "raw" and self.masks.p > 0:
            raise ValueError(
                f"encoder.masks.p={self.masks.p:g}: masks cover bands and frames, which encoder.frontend.name=raw does "
                "not have; leave encoder.masks out"
            )
        return self


class Encoder(nn.Module):
    """Samples ``[B, T]`` in [-1, 1] to embeddings ``[B, embedding_dim]``, float32, not normalised.

    ``minimum_samples``: what T must be at the least.
    """

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        super().__init__()
        self.frontend = _build_frontend(config.frontend, rate)
        self.masks = FeatureMask(config.masks)
        self.backbone = _build_backbone(config)
        self.embedding_dim = config.backbone.embedding_dim
        self.minimum_samples = self.frontend.samples_for(self.backbone.least_frames)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """Masks features in training where ``keys [B]`` int64 are given; gradients reach neither ``wave`` nor masks."""
        features = self.frontend(wave)
        if keys is not None and self.training:
            features = self.masks(features, keys)
        # Losses compare embeddings at temperatures of a few hundredths: not in bfloat16
        return self.backbone(features).float()  # type: ignore[no-any-return]


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


def _build_frontend(config: LogMelConfig | RawConfig | SpectrumConfig, rate: int) -> LogMel | Raw | Spectrum:
    if isinstance(config, RawConfig):
        return Raw(config)
    return Spectrum(config, rate) if isinstance(config, SpectrumConfig) else LogMel(config, rate)


def _build_backbone(config: EncoderConfig) -> Ecapa | FastResnet34 | Resnet1d | Resnet2d:
    frontend, backbone = config.frontend, config.backbone
    if isinstance(backbone, Resnet1dConfig):
        return Resnet1d(backbone)
    if isinstance(backbone, Resnet2dConfig):
        return Resnet2d(backbone, channels=3 if isinstance(frontend, SpectrumConfig) else 1)
    assert isinstance(frontend, LogMelConfig), "EncoderConfig lets no other through"
    if isinstance(backbone, EcapaConfig):
        return Ecapa(backbone, frontend.n_mels)
    return FastResnet34(backbone, frontend.n_mels)


def _either(names: list[str] | tuple[str, ...]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last

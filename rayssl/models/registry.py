"""The front ends and backbones that ``encoder`` can choose by name."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from rayssl.models.base import BackboneConfig, FrontendConfig
from rayssl.registry import Registry

FRONTENDS = Registry(
    "front end",
    FrontendConfig,
    {
        "fbank": "rayssl.models.fbank:Fbank",
        "logmel": "rayssl.models.frontends:LogMel",
        "nightmel": "rayssl.models.nightmel:NightMel",
        "raw": "rayssl.models.frontends:Raw",
        "spectrum": "rayssl.models.spectrum:Spectrum",
    },
    group="rayssl.encoders",
    default="logmel",  # old configurations give no name: it was the only front end
)
BACKBONES = Registry(
    "backbone",
    BackboneConfig,
    {
        "ecapa": "rayssl.models.ecapa:Ecapa",
        "fast_resnet34": "rayssl.models.fast_resnet34:FastResnet34",
        "resnet1d": "rayssl.models.resnet1d:Resnet1d",
        "resnet2d": "rayssl.models.resnet2d:Resnet2d",
        "sleepformer": "rayssl.models.sleepformer:SleepFormer",
        "soundsleepnet": "rayssl.models.soundsleepnet:SoundSleepNet",
    },
    group="rayssl.encoders",
)
AnyFrontend: TypeAlias = Annotated[FrontendConfig, FRONTENDS]
AnyBackbone: TypeAlias = Annotated[BackboneConfig, BACKBONES]

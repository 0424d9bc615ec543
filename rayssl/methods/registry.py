"""The methods that ``method.name`` can choose."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from rayssl.methods.base import MethodConfig
from rayssl.registry import Registry

METHODS = Registry(
    "method",
    MethodConfig,
    {
        "simclr": "rayssl.methods.simclr:SimCLR",
        "dino": "rayssl.methods.dino:DINO",
        "moco": "rayssl.methods.moco:MoCo",
        "swav": "rayssl.methods.swav:SwAV",
        "vicreg": "rayssl.methods.vicreg:VICReg",
        "sdpn": "rayssl.methods.sdpn:SDPN",
        "ssps": "rayssl.methods.ssps:SSPS",
        "pseudo_speakers": "rayssl.methods.pseudo_speakers:PseudoSpeakers",
        "supervised": "rayssl.methods.supervised:Supervised",
        "clar": "rayssl.methods.clar:CLAR",
        "classifier": "rayssl.methods.classifier:ClassifierMethod",
        "fixmatch": "rayssl.methods.fixmatch:FixMatch",
        "usadtm": "rayssl.methods.usadtm:USADTM",
        "daso": "rayssl.methods.daso:DASO",
        "sleep": "rayssl.methods.sleep:Sleep",
    },
    group="rayssl.methods",
)
AnyMethod: TypeAlias = Annotated[MethodConfig, METHODS]

"""ResNet-18 (He et al., CVPR 2016) over the frequency-time plane.

With the same weights it computes the same function as torchvision's `resnet18` without its last layer.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.base import Backbone, BackboneConfig, FrontendConfig, Layout
from rayssl.models.fast_resnet34 import Basic
from rayssl.models.layout import as_plane
from rayssl.models.norm import BatchNorm2d
from rayssl.models.pooling import pool_plane


class Resnet2dConfig(BackboneConfig):
    """``blocks``: how many blocks each stage has. The first stage has ``width`` channels, each next one twice as many.

    If ``embedding_dim`` is not 8 * ``width``, the width of the last stage, a linear layer to ``embedding_dim`` follows.
    """

    name: Literal["resnet2d"] = "resnet2d"
    """ResNet-18 (He et al., 2016) over the frequency-time plane; for logmel and spectrum."""
    width: int = Field(default=64, ge=1)
    """The number of channels of the first stage; each later stage has twice as many. 64 is published; 16 to 32 suit
    CPUs.
    """
    embedding_dim: int = Field(default=512, ge=1)
    """The number of dimensions of an embedding. If it is not 8 times ``width``, a linear layer makes it."""
    blocks: list[Annotated[int, Field(ge=1)]] = Field(default=[2, 2, 2, 2], min_length=4, max_length=4)
    """How many blocks each of the four stages has; ``[2, 2, 2, 2]`` is ResNet-18."""

    layouts: ClassVar[tuple[Layout, ...]] = ("bands", "planes")

    def build(self, frontend: FrontendConfig) -> Resnet2d:
        """See `BackboneConfig.build`. Features ``[B, F, T]`` are one channel of a plane."""
        return Resnet2d(self, channels=frontend.features if frontend.layout == "planes" else 1)

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A network of a few thousand weights."""
        return {"width": 4, "embedding_dim": 16}


class Resnet2d(Backbone):
    """``[B, channels, F, T]``, or ``[B, F, T]`` as one channel, to ``[B, embedding_dim]``, for any F and T."""

    Config = Resnet2dConfig
    least_frames = 1

    def __init__(self, config: Resnet2dConfig, channels: int) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = BatchNorm2d(width)
        blocks: list[nn.Module] = []
        for stage, count in enumerate(config.blocks):
            for position in range(count):
                outputs, stride = config.width * 2**stage, 2 if stage and position == 0 else 1
                blocks.append(Basic(width, outputs, stride, squeeze_excitation=False))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        same = width == config.embedding_dim
        self.project = nn.Identity() if same else nn.Linear(width, config.embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        x = as_plane(features, self.lays_channels_last(features))
        x = pool_plane(F.relu(self.stem_norm(self.stem(x))))
        x = self.blocks(x)
        # Without a projection this is the embedding, so it must not be in bfloat16
        embedding: Tensor = self.project(x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32)))
        return embedding

"""Fast ResNet-34 (Chung et al., Interspeech 2020, "In defence of metric learning for speaker recognition").

A ResNet-34 with a quarter of the channels (16-32-64-128). Its output is averaged over frequency and pooled over time.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.base import Backbone, BackboneConfig
from rayssl.models.layout import as_plane
from rayssl.models.norm import BatchNorm2d

_STAGES = ((3, 1, 1), (4, 2, 2), (6, 4, 2), (3, 8, 1))  # number of blocks, multiple of `channels`, stride


class FastResnet34Config(BackboneConfig):
    """``pooling``: "sap" (attention-weighted mean) or "asp" (mean and standard deviation). ``squeeze_excitation`` adds
    gates, which the network of the paper does not have and that of the public code for SSPS has.
    """

    name: Literal["fast_resnet34"] = "fast_resnet34"
    """Fast ResNet-34 (Chung et al., 2020), a small network for speakers; for logmel."""
    channels: int = Field(default=16, ge=1)
    """The number of channels of the first stage; later stages have 2, 4 and 8 times as many. 16 is published."""
    embedding_dim: int = Field(default=512, ge=1)
    """The number of dimensions of an embedding; 512 is published."""
    pooling: Literal["sap", "asp"] = "sap"
    """How frames become one vector: ``sap`` is the attention-weighted mean, ``asp`` also has the standard deviation."""
    squeeze_excitation: bool = False
    """Whether blocks have squeeze-and-excitation gates. The network of the paper has none; that of the public code for
    SSPS has them, and 1,437,078 weights.
    """

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A network of a few thousand weights."""
        return {"channels": 4, "embedding_dim": 16}


class FastResnet34(Backbone):
    """``[B, F, T]`` features to ``[B, embedding_dim]``."""

    Config = FastResnet34Config
    least_frames = 1

    def __init__(self, config: FastResnet34Config, features: int) -> None:
        super().__init__()
        width = config.channels
        self.stem = nn.Conv2d(1, width, 7, stride=(2, 1), padding=3, bias=False)
        self.stem_norm = BatchNorm2d(width)
        blocks: list[nn.Module] = []
        for count, multiple, stride in _STAGES:
            for position in range(count):
                outputs = config.channels * multiple
                blocks.append(Basic(width, outputs, stride if position == 0 else 1, config.squeeze_excitation))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = AttentivePooling(width, deviation=config.pooling == "asp")
        self.project = nn.Linear(width * (2 if config.pooling == "asp" else 1), config.embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        x = as_plane(features, self.lays_channels_last(features))
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.blocks(x).mean(dim=2)
        embedding: Tensor = self.project(self.pool(x))
        return embedding


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[B, inputs, F, T]`` to ``[B, outputs, F', T']``.

    ``F' = ceil(F / stride)`` and ``T' = ceil(T / stride)``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze_excitation: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(outputs)
        self.gate = SqueezeExcitation(outputs) if squeeze_excitation else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.gate(self.norm2(self.conv2(y)))
        return F.relu(y + self.shortcut(x))


class SqueezeExcitation(nn.Module):
    """Scales each channel of ``[B, C, F, T]`` by a gate in (0, 1), computed from the means of all channels."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(max(1, channels // reduction), channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None].to(x.dtype)


class AttentivePooling(nn.Module):
    """Self-attentive pooling over time: ``[B, C, T]`` to ``[B, C]``, or to ``[B, 2C]`` with the standard deviation.

    The weight of each frame is the softmax over time of ``u . tanh(W x_t + b)``.
    """

    def __init__(self, channels: int, *, deviation: bool) -> None:
        super().__init__()
        self.deviation = deviation
        self.hidden = nn.Linear(channels, channels)
        self.query = nn.Linear(channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(torch.tanh(self.hidden(x.transpose(1, 2))))
        weights = F.softmax(scores.float() if x.dtype != torch.float64 else scores, dim=1).transpose(1, 2)
        mean = (weights * x).sum(dim=2)
        if not self.deviation:
            return mean
        variance = (weights * (x - mean[:, :, None]).square()).sum(dim=2)
        return torch.cat((mean, variance.clamp_min(1e-5).sqrt()), dim=1)

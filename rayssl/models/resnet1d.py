"""ResNet-18 (He et al., CVPR 2016) in one dimension, over samples.

Kernels and strides are from two published networks:

- The first kernel of 80 samples with stride 4, and the later strides of 4, are those of M18 (Dai et al., ICASSP 2017).
  Long first filters can form a filterbank; with short ones, later layers must do that. The channels double from stage
  to stage. With strides of 4 all stages cost the same; with strides of 2 the cost would double at each stage, and the
  last frames would be 8 ms apart.
- The blocks have kernels of 9, as in CLAR's public code. With a stride of 4, a kernel of 3 would skip every fourth
  frame. And 9 weights are as many as 3 x 3, so the network has the size of `resnet2d`.

The frames of the last stage are 1024 samples apart, or 64 ms at 16 kHz.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.base import Backbone, BackboneConfig, Layout
from rayssl.models.layout import TimeConv, as_plane
from rayssl.models.norm import BatchNorm1d
from rayssl.models.pooling import pool_time

_STEM, _KERNEL, _STRIDE = 80, 9, 4


class Resnet1dConfig(BackboneConfig):
    """``blocks``: how many blocks each stage has. The first stage has ``width`` channels, each next one twice as many.

    If ``embedding_dim`` is not 8 * ``width``, the width of the last stage, a linear layer to ``embedding_dim`` follows.
    """

    name: Literal["resnet1d"] = "resnet1d"
    """ResNet-18 in one dimension, over the samples of a sound; for raw."""
    width: int = Field(default=64, ge=1)
    """The number of channels of the first stage; each later stage has twice as many. 64 is published; 16 to 32 suit
    CPUs.
    """
    embedding_dim: int = Field(default=512, ge=1)
    """The number of dimensions of an embedding. If it is not 8 times ``width``, a linear layer makes it."""
    blocks: list[Annotated[int, Field(ge=1)]] = Field(default=[2, 2, 2, 2], min_length=4, max_length=4)
    """How many blocks each of the four stages has; ``[2, 2, 2, 2]`` is ResNet-18."""

    layouts: ClassVar[tuple[Layout, ...]] = ("samples",)

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A network of a few thousand weights."""
        return {"width": 4, "embedding_dim": 16}


class Resnet1d(Backbone):
    """``[B, 1, T]`` samples to ``[B, embedding_dim]``; T must be at least 4."""

    Config = Resnet1dConfig
    least_frames = _STEM - 2 * ((_STEM - _STRIDE) // 2)  # in frames of the input, which are samples

    def __init__(self, config: Resnet1dConfig, channels: int = 1) -> None:
        super().__init__()
        width = config.width
        self.stem = TimeConv(channels, width, _STEM, stride=_STRIDE, padding=(_STEM - _STRIDE) // 2, bias=False)
        self.stem_norm = BatchNorm1d(width)
        blocks: list[nn.Module] = []
        for stage, count in enumerate(config.blocks):
            for position in range(count):
                outputs, stride = config.width * 2**stage, _STRIDE if stage and position == 0 else 1
                blocks.append(Basic1d(width, outputs, stride))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        same = width == config.embedding_dim
        self.project = nn.Identity() if same else nn.Linear(width, config.embedding_dim)
        for module in self.modules():
            if isinstance(module, TimeConv):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, samples: Tensor) -> Tensor:
        x = samples
        if self.lays_channels_last(samples):
            x = as_plane(samples, True)  # [B, 1, 1, T]; all convolutions keep the channels last
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.blocks(pool_time(x, _STRIDE))
        # Without a projection this is the embedding, so it must not be in bfloat16
        embedding: Tensor = self.project(x.flatten(2).mean(2, dtype=torch.promote_types(x.dtype, torch.float32)))
        return embedding


class Basic1d(nn.Module):
    """Two convolutions with kernel 9 and a shortcut: ``[B, inputs, T]`` to ``[B, outputs, ceil(T / stride)]``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = TimeConv(inputs, outputs, _KERNEL, stride=stride, padding=_KERNEL // 2, bias=False)
        self.norm1 = BatchNorm1d(outputs)
        self.conv2 = TimeConv(outputs, outputs, _KERNEL, padding=_KERNEL // 2, bias=False)
        self.norm2 = BatchNorm1d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(TimeConv(inputs, outputs, 1, stride=stride, bias=False), BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

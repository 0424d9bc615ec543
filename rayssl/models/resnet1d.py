"""ResNet-18 (He et al., CVPR 2016) in one dimension, over samples.

Kernels and strides are taken from two nets of the field. The first kernel, 80 samples every 4, and steps of 4 after it
are those of M18 (Dai et al., ICASSP 2017): long first filters can be a filterbank, short ones leave that to the layers
after them; and while the channels double from stage to stage, steps of 4 keep the cost of a stage the same, where
with steps of 2 it would double too, for frames of 8 ms at the end. Blocks have kernels of 9, as CLAR's public code: a
stride of 4 with a kernel of 3 would never look at every fourth frame, and 9 weights are as many as 3 x 3, so that the
network has the size of its twin over spectra. In all, 1024 samples or 64 ms at 16 kHz make a frame of the last stage.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.base import Backbone, BackboneConfig, Layout
from rayssl.models.norm import BatchNorm1d
from rayssl.models.pooling import pool_time

_STEM, _KERNEL, _STRIDE = 80, 9, 4


class Resnet1dConfig(BackboneConfig):
    """``blocks`` of each stage, ``width`` channels in the first and twice as many in each that follows.

    A linear layer to ``embedding_dim`` stands at the end only where the last stage has another width, 8 * ``width``.
    """

    name: Literal["resnet1d"] = "resnet1d"
    width: int = Field(default=64, ge=1)
    embedding_dim: int = Field(default=512, ge=1)
    blocks: list[Annotated[int, Field(ge=1)]] = Field(default=[2, 2, 2, 2], min_length=4, max_length=4)

    layouts: ClassVar[tuple[Layout, ...]] = ("samples",)

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A few thousand weights."""
        return {"width": 4, "embedding_dim": 16}


class Resnet1d(Backbone):
    """``[B, 1, T]`` samples to ``[B, embedding_dim]``; T of 4 at least."""

    Config = Resnet1dConfig
    least_frames = _STEM - 2 * ((_STEM - _STRIDE) // 2)  # of the input: samples

    def __init__(self, config: Resnet1dConfig, channels: int = 1) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Conv1d(channels, width, _STEM, stride=_STRIDE, padding=(_STEM - _STRIDE) // 2, bias=False)
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
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, samples: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(samples)))
        x = self.blocks(pool_time(x, _STRIDE))
        # Without a projection this is the embedding: not in bfloat16
        embedding: Tensor = self.project(x.mean(2, dtype=torch.promote_types(x.dtype, torch.float32)))
        return embedding


class Basic1d(nn.Module):
    """Two convolutions of 9 around a shortcut: ``[B, inputs, T]`` to ``[B, outputs, ceil(T / stride)]``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, _KERNEL, stride=stride, padding=_KERNEL // 2, bias=False)
        self.norm1 = BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, _KERNEL, padding=_KERNEL // 2, bias=False)
        self.norm2 = BatchNorm1d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv1d(inputs, outputs, 1, stride=stride, bias=False), BatchNorm1d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

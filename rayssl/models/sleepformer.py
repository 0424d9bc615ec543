"""SleepFormer: MobileViTV2 (Mehta and Rastegari, 2022) for each epoch's picture, and a Transformer over the epochs.

MobileViTV2 is timm's. The sizes of the head were never published in what could be had.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.attention import AttentionBlock, keyed_dropout
from rayssl.models.base import NightBackbone, NightBackboneConfig
from rayssl.models.norm import BatchNorm2d

_FEATURES = 512  # of mobilevitv2_100


class SleepFormerConfig(NightBackboneConfig):
    """40 epochs in, all scored.

    ``width`` multiplies the channels of MobileViTV2: 0.5, 0.75 and 1 are timm's ``mobilevitv2_050``, ``_075`` and
    ``_100``; 0.25 is for CPUs. A picture is resized to ``bands`` x ``frames`` first. MobileViTV2 halves both five
    times, so that 20 bands would end as less than one row. ``head``: ``vit`` is a Transformer over the epochs with
    learnt positions, ``blocks`` pre-norm blocks with ``heads`` heads, four times as wide inside; ``fc`` leaves it out,
    so that no epoch sees its neighbours. ``dropout``: of what enters the head ``vit``, in training, drawn from the
    keys of the batch. ``embedding_dim``: by default the feature width of MobileViTV2, 512 ``width``; a linear layer
    makes any other.
    """

    name: Literal["sleepformer"] = "sleepformer"
    """SleepFormer (2023): MobileViTV2 for each epoch's picture, and a Transformer over the epochs; for nightmel."""
    width: float = Field(default=0.5, ge=0.125, le=2.0)
    """The factor of the channels of MobileViTV2: 0.5, 0.75 and 1 are timm's ``mobilevitv2_050``, ``_075`` and ``_100``;
    0.25 is for CPUs.
    """
    bands: int = Field(default=32, ge=1)
    """The number of bands that a picture is resized to. MobileViTV2 halves it five times, so it should be at least 32.
    """
    frames: int = Field(default=300, ge=1)
    """The number of frames that a picture is resized to. Fewer cost less and resolve less."""
    head: Literal["vit", "fc"] = "vit"
    """``vit`` is a Transformer over the epochs with learnt positions; ``fc`` leaves it out, so that no epoch sees its
    neighbours.
    """
    blocks: int = Field(default=4, ge=1)
    """The number of Transformer blocks of the head ``vit``."""
    heads: int = Field(default=4, ge=1)
    """The number of attention heads of the head ``vit``; it must divide 512 times ``width``."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The share, from 0 to below 1, of what enters the head ``vit`` that is dropped in training."""
    embedding_dim: int = Field(default=256, ge=1)
    """The number of dimensions of an epoch's embedding; if it is not given, 512 times ``width``. A linear layer makes
    any other.
    """

    @model_validator(mode="before")
    @classmethod
    def _same_width(cls, given: Any) -> Any:
        if isinstance(given, dict) and "embedding_dim" not in given and isinstance(given.get("width"), float | int):
            return {**given, "embedding_dim": max(1, int(_FEATURES * given["width"]))}
        return given

    @model_validator(mode="after")
    def _divides(self) -> SleepFormerConfig:
        if self.own_dim % self.heads:
            raise ValueError(f"the feature width {self.own_dim} (512 'width') must be a multiple of 'heads'")
        return self

    @property
    def own_dim(self) -> int:
        """The feature width of MobileViTV2 and of the head."""
        return int(_FEATURES * self.width)

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A small network for small pictures and short sequences."""
        return {"width": 0.125, "frames": 64, "blocks": 1, "sequence": 6}


class SleepFormer(NightBackbone):
    """``[B, N, F, T]`` to ``z [B, N, embedding_dim]``, for any F and T, and N up to ``sequence``."""

    Config = SleepFormerConfig
    positions: Tensor

    def __init__(self, config: SleepFormerConfig, features: int) -> None:
        super().__init__()
        self.config, self.own_dim = config, config.own_dim
        self.epoch = mobilevitv2(config.width)
        if config.head == "vit":
            blocks = [AttentionBlock(self.own_dim, config.heads, 4 * self.own_dim) for _ in range(config.blocks)]
            self.positions = nn.Parameter(0.02 * torch.randn(config.sequence, self.own_dim))
            self.blocks = nn.Sequential(*blocks, nn.LayerNorm(self.own_dim))
        same = config.embedding_dim == self.own_dim
        self.project: nn.Module = nn.Identity() if same else nn.Linear(self.own_dim, config.embedding_dim)

    def context(self, own: Tensor, keys: Tensor | None) -> Tensor:
        """See `NightBackbone.context`."""
        if self.config.head == "fc":
            alone: Tensor = self.project(own)
            return alone
        tokens = keyed_dropout(own, keys if self.training else None, self.config.dropout)
        among: Tensor = self.project(self.blocks(tokens + self.positions[: own.shape[1]]))
        return among

    def encoded(self, pictures: Tensor) -> Tensor:
        """See `NightBackbone.encoded`."""
        # channels last in memory: on a CPU a step takes 3/5 of the time, together with `PointwiseConv2d`
        planes = self.epoch(self.resized(pictures)[..., None].permute(0, 3, 1, 2))
        found: Tensor = planes.mean((2, 3), dtype=torch.promote_types(planes.dtype, torch.float32))
        return found

    def resized(self, pictures: Tensor) -> Tensor:
        """Pictures ``[n, F, T]`` to ``[n, bands, frames]``, bilinear.

        Where a side becomes smaller, the triangle of the interpolation is widened with it (as PIL does): otherwise only
        two of ten frames would be seen.
        """
        size = (self.config.bands, self.config.frames)
        if pictures.shape[1:] == size:
            return pictures
        return F.interpolate(pictures[:, None], size, mode="bilinear", antialias=True)[:, 0]


class PointwiseConv2d(nn.Module):
    """A convolution of kernel 1 as one product over channels. On a CPU, with channels last, it takes half the time."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[n, C, H, W]`` to ``[n, C', H, W]``, which lies in memory with channels last."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class NormAct2d(BatchNorm2d):
    """Batch normalisation with the activation behind it, as timm's, but with statistics that ranks can share."""

    def __init__(self, like: Any) -> None:
        super().__init__(like.num_features)
        self.eps, self.momentum, self.act = like.eps, like.momentum, like.act

    def forward(self, input: Tensor) -> Tensor:
        activated: Tensor = self.act(super().forward(input))
        return activated


def mobilevitv2(width: float) -> nn.Module:
    """timm's MobileViTV2 for one channel ``[n, 1, H, W]`` to ``[n, 512 width, H / 32, W / 32]``, with initial weights.

    The names of its weights are timm's. Two kinds of layers are ours, with the same function: batch normalisation whose
    statistics ranks can share, and convolutions of kernel 1 that are faster on a CPU.
    """
    # here and not above: timm takes two seconds, which no command must wait for that builds no such network
    from timm.layers import BatchNormAct2d
    from timm.models.byobnet import ByobNet
    from timm.models.mobilevit import model_cfgs

    def scaled(block: Any) -> Any:
        if isinstance(block, tuple):
            return tuple(map(scaled, block))
        return dataclasses.replace(block, c=int(block.c * width))

    whole = model_cfgs["mobilevitv2_100"]
    config = dataclasses.replace(whole, blocks=scaled(whole.blocks), stem_chs=int(whole.stem_chs * width))
    network: nn.Module = ByobNet(config, in_chans=1, num_classes=0, global_pool="")
    for name, part in list(network.named_modules()):
        if isinstance(part, BatchNormAct2d):
            network.set_submodule(name, NormAct2d(part))
        elif isinstance(part, nn.Conv2d) and part.kernel_size == part.stride == (1, 1) and part.groups == 1:
            network.set_submodule(name, PointwiseConv2d(part))
        elif isinstance(part, nn.Conv2d):
            # as its gradient will be: DDP wants both alike
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network

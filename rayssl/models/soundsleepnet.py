"""A network after SoundSleepNet (Hong et al., 2022): a CNN for each epoch, then a BiLSTM and a Transformer over epochs.

The sizes of its layers were never published in what could be had. These are near public re-implementations.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.attention import AttentionBlock, keyed_dropout
from rayssl.models.base import NightBackbone, NightBackboneConfig
from rayssl.models.norm import BatchNorm2d
from rayssl.models.recurrent import BiLSTM


class SoundSleepNetConfig(NightBackboneConfig):
    """40 epochs in, the middle 20 scored.

    ``context``: ``sequence`` is the whole network; ``epoch`` leaves the BiLSTM and the Transformer out, so that each
    epoch is judged alone (the one-to-one network of the paper's ablation). ``width``: channels of the last
    convolutions and D_e; the first two have a quarter and a half of it. ``embedding_dim``: the width of the BiLSTM
    (both directions) and of the Transformer, ``blocks`` blocks with ``heads`` heads, ``hidden`` wide inside.
    ``dropout``: after the BiLSTM, in training, drawn from the keys of the batch. ``scored``: by default the middle
    half; all with ``context: epoch``.
    """

    name: Literal["soundsleepnet"] = "soundsleepnet"
    """After SoundSleepNet (Hong et al., 2022): a CNN for each epoch, a BiLSTM and a Transformer over epochs; for
    nightmel.
    """
    context: Literal["sequence", "epoch"] = "sequence"
    """``sequence`` is the whole network; ``epoch`` leaves out the BiLSTM and the Transformer, so that each epoch is
    judged alone (the ablation of the paper).
    """
    width: int = Field(default=128, ge=4, multiple_of=4)
    """The number of channels of the last convolutions, a multiple of 4; the first two have a quarter and a half of it.
    """
    embedding_dim: int = Field(default=256, ge=2, multiple_of=2)
    """The number of dimensions of an epoch's embedding: the width of the BiLSTM (both directions) and of the
    Transformer. An even number, and a multiple of ``heads``.
    """
    blocks: int = Field(default=2, ge=0)
    """The number of Transformer blocks after the BiLSTM; 0 for none."""
    heads: int = Field(default=4, ge=1)
    """The number of attention heads of each block; it must divide ``embedding_dim``."""
    hidden: int = Field(default=512, ge=1)
    """The width of the hidden layer inside a Transformer block."""
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    """The share, from 0 to below 1, of the BiLSTM's output that is dropped in training."""

    @model_validator(mode="after")
    def _divides(self) -> SoundSleepNetConfig:
        if self.embedding_dim % self.heads:
            raise ValueError(f"'embedding_dim' ({self.embedding_dim}) must be a multiple of 'heads' ({self.heads})")
        return self

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A network of a few thousand weights, for short sequences."""
        return {"width": 8, "embedding_dim": 16, "blocks": 1, "hidden": 16, "sequence": 6}

    @property
    def scored_slice(self) -> slice:
        """See `NightBackboneConfig.scored_slice`."""
        if self.scored is not None or self.context == "epoch":
            return super().scored_slice
        return slice(self.sequence // 4, self.sequence - self.sequence // 4)


class SoundSleepNet(NightBackbone):
    """``[B, N, F, T]`` to ``z [B, N, embedding_dim]``, for any F and T, and any N.

    Epoch encoder: four times convolution 3x3, batch normalisation, ReLU; after each of the first three, the maximum of
    2 bands x 4 frames (fewer at the edges); at last the mean over the plane.
    """

    Config = SoundSleepNetConfig

    def __init__(self, config: SoundSleepNetConfig, features: int) -> None:
        super().__init__()
        self.config, self.own_dim = config, config.width
        channels = [1, config.width // 4, config.width // 2, config.width, config.width]
        pairs = list(itertools.pairwise(channels))
        convolutions = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        # channels last in memory, as their gradients will be: DDP wants both alike
        self.convolutions = nn.ModuleList(convolutions)
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norms = nn.ModuleList(BatchNorm2d(b) for _, b in pairs)
        dim = config.embedding_dim
        self.project: nn.Module = nn.Identity()
        if config.context == "sequence":
            self.recurrent = BiLSTM(config.width, dim // 2, layers=2, longest=config.sequence)
            self.blocks = nn.Sequential(
                *(AttentionBlock(dim, config.heads, config.hidden) for _ in range(config.blocks)), nn.LayerNorm(dim)
            )
        elif dim != config.width:
            self.project = nn.Linear(config.width, dim)

    def context(self, own: Tensor, keys: Tensor | None) -> Tensor:
        """See `NightBackbone.context`."""
        if self.config.context == "epoch":
            alone: Tensor = self.project(own)
            return alone
        along = keyed_dropout(self.recurrent(own), keys if self.training else None, self.config.dropout)
        among: Tensor = self.blocks(along)
        return among

    def encoded(self, pictures: Tensor) -> Tensor:
        """See `NightBackbone.encoded`."""
        x = pictures[..., None].permute(0, 3, 1, 2)  # channels last in memory: a CPU takes 3/4 of the time
        for place, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x))
            if place < 3:
                x = F.max_pool2d(x, (2, 4), ceil_mode=True)
            x = F.relu(x)  # after the maximum: the value is the same, of an eighth as many
        return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))

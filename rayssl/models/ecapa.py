"""ECAPA-TDNN (Desplanques, Thienpondt and Demuynck, Interspeech 2020): features to speaker embedding.

With the same weights it computes the same function as speechbrain's `ECAPA_TDNN`, or as wespeaker's (``variant``); only
the order of operations differs. The blocks keep the length of the time axis by reflecting it at both ends, or by zeros.

There are two layouts of features, with the same weights: ``[B, C, T]`` on a CPU, and ``[B, T, C]`` on a GPU. In the
second one, every convolution is one product over the last axis. ``time`` is the axis of time, 2 or 1.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.base import Backbone, BackboneConfig
from rayssl.models.exporting import exporting
from rayssl.models.neighbours import neighbours
from rayssl.models.norm import BatchNorm1d, over_last
from rayssl.models.statistics import attended_moments, moments

_DILATIONS = (2, 3, 4)
# On a CPU a batched product takes about 3/4 of the time of a convolution with kernel 1, as long as the gradient of the
# weight fits into the cache: the product makes this gradient once per utterance before summing. In elements.
_LARGEST_REPEATED = 1 << 22
_LEAST, _LEAST_PLAIN = 1e-12, 1e-7  # variances: speechbrain's, wespeaker's


class EcapaConfig(BackboneConfig):
    """The published sizes have ``channels`` 512 or 1024.

    The default of ``mfa_channels`` is 3 * ``channels``, as in most public code. The paper has 1536 for both sizes.
    """

    name: Literal["ecapa"] = "ecapa"
    """ECAPA-TDNN (Desplanques et al., 2020), the usual network for speakers; for logmel and fbank."""
    channels: int = Field(default=512, ge=1)
    """The number of channels of the blocks: 512 or 1024 are published. A multiple of ``scale``."""
    embedding_dim: int = Field(default=192, ge=1)
    """The number of dimensions of an embedding; 192 is published."""
    mfa_channels: int | None = Field(default=None, ge=1)
    """The number of channels where the outputs of the three blocks are joined. Null takes 3 times ``channels``, as most
    public code; the paper has 1536.
    """
    attention_channels: int = Field(default=128, ge=1)
    """The number of hidden channels of the attention that pools over time; 128 is published."""
    se_channels: int = Field(default=128, ge=1)
    """The number of hidden channels of the squeeze-and-excitation gates; 128 is published."""
    scale: int = Field(default=8, ge=2)
    """The number of groups of a Res2Net block, which see wider and wider context; 8 is published."""
    variant: Literal["speechbrain", "wespeaker"] = "speechbrain"
    """Whose network it is, to the last detail. ``wespeaker`` pads with zeros instead of reflecting, has no batch
    normalisation where the blocks are joined, and a tanh alone in the attention. Take it for a start from wespeaker's
    weights (their ECAPA_TDNN_GLOB), usually with ``mfa_channels`` 1536.
    """

    @model_validator(mode="after")
    def _splits(self) -> EcapaConfig:
        if self.channels % self.scale:
            raise ValueError(f"'channels' ({self.channels}) must be a multiple of 'scale' ({self.scale})")
        return self

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A network of a few thousand weights."""
        return {"channels": 16, "scale": 2, "embedding_dim": 16, "mfa_channels": 24, "attention_channels": 8}


class Ecapa(Backbone):
    """``[B, F, T]`` features to ``[B, embedding_dim]``.

    T must be above 4 frames, because the ends are reflected; with wespeaker's zeros, 2 frames have a deviation.
    """

    Config = EcapaConfig
    least_frames = max(_DILATIONS) + 1
    gains_compiled = True

    def __init__(self, config: EcapaConfig, features: int) -> None:
        super().__init__()
        channels, mfa = config.channels, config.mfa_channels or 3 * config.channels
        zeros = config.variant == "wespeaker"
        self.least_frames = 2 if zeros else max(_DILATIONS) + 1
        self.stem = Tdnn(features, channels, kernel=5, zeros=zeros)
        self.blocks = nn.ModuleList(SeRes2Net(config, dilation) for dilation in _DILATIONS)
        self.mfa = Tdnn(len(_DILATIONS) * channels, mfa, normed=config.variant == "speechbrain")
        self.pool = AttentiveStatistics(mfa, config.attention_channels, config.variant)
        self.pool_norm = BatchNorm1d(2 * mfa)
        self.project = nn.Linear(2 * mfa, config.embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        time = 1 if self.lays_channels_last(features) else 2
        x = self.stem(features if time == 2 else features.transpose(1, 2), time)
        outputs = []
        for block in self.blocks:
            x = block(x, time)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs, dim=3 - time), time)
        embedding: Tensor = self.project(self.pool_norm(self.pool(x, time)))
        return embedding


class Tdnn(nn.Module):
    """Convolution over time, ReLU, batch normalisation: ``[B, inputs, T]`` to ``[B, outputs, T]``, or channels last.

    ``zeros``: beyond the ends of the time axis are zeros, and not its reflection. ``normed``: whether it normalises.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        dilation: int = 1,
        *,
        zeros: bool = False,
        normed: bool = True,
    ) -> None:
        super().__init__()
        self.reach, self.mode = dilation * (kernel - 1) // 2, "constant" if zeros else "reflect"
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.norm = BatchNorm1d(outputs) if normed else nn.Identity()

    def forward(self, x: Tensor, time: int = 2) -> Tensor:
        if self.conv.kernel_size == (1,):
            x = _pointwise(x, self.conv.weight.squeeze(2), self.conv.bias, time)
        elif time == 1:
            x = _convolved(x, self.conv.weight, self.conv.bias, self.conv.dilation[0], self.mode)
        else:
            x = self.conv(F.pad(x, (self.reach, self.reach), mode=self.mode))
        x = F.relu(x, inplace=time == 2)  # a product over the last axis is a view: its gradient would be copied twice
        y: Tensor = self.norm(x) if time == 2 else over_last(self.norm, x)
        return y


class SeRes2Net(nn.Module):
    """1x1, Res2Net over groups of channels, 1x1, squeeze and excitation, residual: ``[B, C, T]`` to the same shape."""

    def __init__(self, config: EcapaConfig, dilation: int) -> None:
        super().__init__()
        channels, width = config.channels, config.channels // config.scale
        self.scale = config.scale
        self.before = Tdnn(channels, channels)
        zeros = config.variant == "wespeaker"
        self.groups = nn.ModuleList(
            Tdnn(width, width, kernel=3, dilation=dilation, zeros=zeros) for _ in range(config.scale - 1)
        )
        self.after = Tdnn(channels, channels)
        self.squeeze = nn.Linear(channels, config.se_channels)
        self.excite = nn.Linear(config.se_channels, channels)

    def forward(self, x: Tensor, time: int = 2) -> Tensor:
        first, *rest = self.before(x, time).chunk(self.scale, dim=3 - time)
        outputs = [first]
        for position, (group, part) in enumerate(zip(self.groups, rest, strict=True)):
            outputs.append(group(part if position == 0 else part + outputs[-1], time))
        y = self.after(torch.cat(outputs, dim=3 - time), time)
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean(dim=time)))))
        return torch.addcmul(x, y, weight.unsqueeze(time).to(y.dtype))


class AttentiveStatistics(nn.Module):
    """Attention-weighted mean and standard deviation of each channel: ``[B, C, T]`` or ``[B, T, C]`` to ``[B, 2C]``.

    The input of the attention is each frame together with the utterance's unweighted mean and standard deviation
    (global context). wespeaker takes the unbiased standard deviation there, and no ReLU and normalisation before tanh.
    """

    def __init__(self, channels: int, attention_channels: int, variant: str = "speechbrain") -> None:
        super().__init__()
        self.channels, self.plain = channels, variant == "wespeaker"
        self.context = nn.Conv1d(3 * channels, attention_channels, 1)
        self.norm = nn.Identity() if self.plain else BatchNorm1d(attention_channels)
        self.score = nn.Conv1d(attention_channels, channels, 1)

    def forward(self, x: Tensor, time: int = 2) -> Tensor:
        mean, variance = moments(x, time)
        # A convolution over cat(x, mean, deviation) is the sum of three convolutions; two of these are constant in time
        weight = self.context.weight.squeeze(2)
        of_frame, of_utterance = weight.split((self.channels, 2 * self.channels), dim=1)
        if self.plain:
            frames = x.shape[time]
            torch._check(frames > 1, lambda: "one frame has no deviation")
            spread = (variance * (frames / (frames - 1)) + _LEAST_PLAIN).sqrt()
        else:
            spread = _deviation(variance)
        constant = F.linear(torch.cat((mean, spread), dim=1), of_utterance, self.context.bias)
        hidden = _pointwise(x, of_frame, None, time) + constant.unsqueeze(time)
        if not self.plain:
            hidden = F.relu(hidden, inplace=True)  # a sum, and no view
            hidden = self.norm(hidden) if time == 2 else over_last(self.norm, hidden)
        hidden = torch.tanh(hidden)
        scores = _pointwise(hidden, self.score.weight.squeeze(2), self.score.bias, time)
        mean, variance = attended_moments(x, scores, time)
        return torch.cat((mean, _deviation(variance, _LEAST_PLAIN if self.plain else _LEAST)), dim=1)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, time: int) -> Tensor:
    """A convolution with kernel 1 as a product: ``x [B, I, T]``, ``weight [O, I]``, ``bias [O]`` to ``[B, O, T]``.

    With ``time`` 1, ``[B, T, I]`` to ``[B, T, O]``.
    """
    if time == 1:
        return F.linear(x, weight, bias)
    # An exported file accepts any batch size, so the choice must not depend on the batch size there
    if exporting() or x.device.type != "cpu" or len(x) * weight.numel() > _LARGEST_REPEATED:
        return F.conv1d(x, weight.unsqueeze(2), bias)
    repeated = weight.expand(len(x), -1, -1)
    return torch.bmm(repeated, x) if bias is None else torch.baddbmm(bias[:, None], repeated, x)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, mode: str = "reflect") -> Tensor:
    """A convolution over the padded time axis as one product: ``[B, T, I]``, ``weight [O, I, K]`` to ``[B, T, O]``.

    The K frames that an output frame sees are put side by side, ``[B, T, K * I]``. A convolution of torch would need
    ``[B, C, T]``.
    """
    outputs, inputs, kernel = weight.shape
    seen = neighbours(x, kernel, dilation, mode)
    return F.linear(seen, weight.transpose(1, 2).reshape(outputs, kernel * inputs), bias)


def _deviation(variance: Tensor, least: float = _LEAST) -> Tensor:
    # The gradient of the square root is infinite at 0
    return variance.clamp_min(least).sqrt()

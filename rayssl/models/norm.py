"""Batch normalisation that can take its statistics over all ranks, on any backend (gloo on CPU as well).

`torch.nn.SyncBatchNorm` works on GPUs only. Without it, W ranks with B rows each normalise differently from one rank
with W*B, and contrastive training can read from the statistics which rows share a rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.collectives import gather, world


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` for ``[B, C]`` or ``[B, C, T]``; with ``sync``, training statistics span all ranks."""

    def __init__(self, channels: int, *, sync: bool = False) -> None:
        super().__init__(channels)
        self.sync = sync

    def forward(self, input: Tensor) -> Tensor:
        if self.sync and self.training and world() > 1:
            self._check_input_dim(input)
            return _over_ranks(self, input)
        return super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for ``[B, C, H, W]``; with ``sync``, training statistics span all ranks."""

    def __init__(self, channels: int, *, sync: bool = False) -> None:
        super().__init__(channels)
        self.sync = sync

    def forward(self, input: Tensor) -> Tensor:
        if self.sync and self.training and world() > 1:
            self._check_input_dim(input)
            return _over_ranks(self, input)
        return super().forward(input)


def set_sync(module: nn.Module, sync: bool) -> None:
    """Switches every batch normalisation in ``module`` to statistics over all ranks, or back to each rank's own."""
    for part in module.modules():
        if isinstance(part, (BatchNorm1d, BatchNorm2d)):
            part.sync = sync


def _over_ranks(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``x [B, C, ...]`` normalised with the mean and the biased variance over all ranks' rows, in ``x``'s dtype."""
    values = x if x.dtype == torch.float64 else x.float()
    count, mean, variance = _global_moments(values)
    _remember(norm, count, mean, variance)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(x.dtype)


def _global_moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (scalar), mean ``[C]`` and biased variance ``[C]`` over all ranks, with gradient, in one exchange.

    Each rank sends its own mean and squared deviations, merged as in Chan, Golub and LeVeque (1979): sums of squares
    would lose float32's precision for channels with a large mean. Ranks may hold different numbers of rows.
    """
    dims = [d for d in range(values.dim()) if d != 1]
    own_count = values.new_full((1,), values.numel() // values.shape[1])
    own_mean = values.mean(dims)
    shape = (1, -1) + (1,) * (values.dim() - 2)
    own_spread = (values - own_mean.view(shape)).square().sum(dims)
    every = gather(torch.cat((own_count, own_mean, own_spread))[None])
    counts, (means, spreads) = every[:, :1], every[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (spreads + counts * (means - mean).square()).sum(0) / count
    return count, mean, variance


@torch.no_grad()
def _remember(norm: nn.BatchNorm1d | nn.BatchNorm2d, count: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Moves the running mean and the running (unbiased) variance towards this global batch's."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    assert norm.momentum is not None, "a cumulative average is not offered"
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    unbiased = variance * (count / (count - 1).clamp_min(1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)

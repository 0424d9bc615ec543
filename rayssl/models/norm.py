"""Batch normalisation that can use the statistics of all ranks, with any backend (also gloo on CPUs).

`torch.nn.SyncBatchNorm` works only on GPUs, where its kernels are used. Without common statistics, W ranks with B rows
each normalise differently from one rank with W*B rows. And contrastive training could learn from the statistics which
rows are on the same rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm

from rayssl.collectives import everyone, gather, world


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` for ``[B, C]`` or ``[B, C, T]``; with ``sync``, training uses statistics of all ranks.

    It also takes ``[B, C, 1, T]``: a sequence whose channels are last in memory.
    """

    def __init__(self, channels: int, *, sync: bool = False) -> None:
        super().__init__(channels)
        self.sync = sync

    def forward(self, input: Tensor) -> Tensor:
        if self.sync and self.training and world() > 1:
            self._check_input_dim(input)
            return _over_ranks(self, input)
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if not (input.dim() == 4 and input.shape[2] == 1):
            super()._check_input_dim(input)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for ``[B, C, H, W]``; with ``sync``, training uses the statistics of all ranks."""

    def __init__(self, channels: int, *, sync: bool = False) -> None:
        super().__init__(channels)
        self.sync = sync

    def forward(self, input: Tensor) -> Tensor:
        if self.sync and self.training and world() > 1:
            self._check_input_dim(input)
            return _over_ranks(self, input)
        return super().forward(input)


def set_sync(module: nn.Module, sync: bool) -> None:
    """Switches every batch normalisation in ``module`` to the statistics of all ranks, or of each rank alone."""
    for part in module.modules():
        if isinstance(part, (BatchNorm1d, BatchNorm2d)):
            part.sync = sync


def over_last(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm`` for ``x [B, T, C]``, which has the channels last in memory, as ``[B, C, 1, T]``.

    As rows ``[B * T, C]`` it would be in cuDNN's mode for linear layers, not in the one for convolutions.
    """
    normalised: Tensor = norm(x.unsqueeze(1).permute(0, 3, 1, 2))
    # no index: its gradient would be a copy into zeros
    return normalised.permute(0, 2, 3, 1).squeeze(1)


def _over_ranks(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``x [B, C, ...]`` normalised by the mean and the biased variance of the rows of all ranks, in ``x``'s dtype."""
    return _on_gpu(norm, x) if x.is_cuda else _anywhere(norm, x)


def _on_gpu(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`_over_ranks` with the kernels of `torch.nn.SyncBatchNorm`, which read either layout in memory."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    state = norm.weight, norm.bias, norm.running_mean, norm.running_var
    found: Tensor = _Kernels.apply(x, *state, norm.eps, norm.momentum)  # type: ignore[no-untyped-call]
    return found


class _Kernels(torch.autograd.Function):
    """torch's function but for one host wait: it leaves ranks without rows out, and here every rank has rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
    ) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        channels = x.shape[1]
        mean, scale = torch.batch_norm_stats(x, eps)
        own = torch.cat((mean, scale, mean.new_full((1,), x.numel() // channels)))
        means, scales, counts = gather(own[None]).split([channels, channels, 1], dim=1)
        running = running_mean, running_var, momentum
        mean, scale = torch.batch_norm_gather_stats_with_counts(x, means, scales, *running, eps, counts.reshape(-1))
        ctx.save_for_backward(x, weight, mean, scale, counts.to(torch.int32))
        ctx.process_group = everyone()
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_result: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight, of_bias, *_ = SyncBatchNorm.backward(ctx, of_result)
        return of_x, of_weight, of_bias, None, None, None, None


def _anywhere(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`_over_ranks` with any backend."""
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

    Each rank sends its own mean and its sum of squared deviations. They are merged as in Chan, Golub and LeVeque
    (1979). Sums of squares would lose precision in float32 for channels with a large mean. The number of rows may
    differ between ranks.
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
    """Moves the running mean and the running (unbiased) variance towards those of this global batch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    assert norm.momentum is not None, "a cumulative average is not supported"
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    unbiased = variance * (count / (count - 1).clamp_min(1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)

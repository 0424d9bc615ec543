"""Means and variances over time with handwritten gradients: the values of autograd, with a third of its memory reads.

Pooling reads far more values than it returns. So its cost is the number of times that it reads them. Autograd would
store every intermediate product and read it again. Inputs in bfloat16 are kept as they are for the gradient; all sums
are float32 at least. A deviation from the mean is computed again, because to store it would cost twice the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def moments(x: Tensor, time: int = 2) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the axis ``time``: ``[B, C, T]`` to two ``[B, C]``, in float32 at least.

    With ``time`` 1, the input is ``[B, T, C]``.
    """
    mean, variance = _Moments.apply(x, time)  # type: ignore[no-untyped-call]
    return mean, variance


def attended_moments(x: Tensor, scores: Tensor, time: int = 2) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``x [B, C, T]`` with the weights ``w = softmax(scores [B, C, T])`` over time.

    ``m = sum_t w_t x_t`` and ``v = sum_t w_t (x_t - m)**2``, each ``[B, C]``, in float32 at least. With ``time`` 1,
    both inputs are ``[B, T, C]``.
    """
    mean, variance = _AttendedMoments.apply(x, scores, time)  # type: ignore[no-untyped-call]
    return mean, variance


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=time, dtype=_wide(x))
        ctx.save_for_backward(x, mean)
        ctx.time = time
        return mean, (x - mean.unsqueeze(time)).square_().mean(dim=time)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, None]:
        # dm/dx_t = 1/T; dv/dx_t = 2 (x_t - m) / T; the part through m is 0, because the deviations sum to 0
        x, mean = ctx.saved_tensors
        time, frames = ctx.time, x.shape[ctx.time]
        slope = 2.0 / frames * of_variance
        of_x = _line(x, slope, of_mean / frames - slope * mean, time)
        return of_x.to(x.dtype), None


class _AttendedMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, time: int) -> tuple[Tensor, Tensor]:
        weights = scores.softmax(dim=time, dtype=_wide(scores))
        mean = (weights * x).sum(dim=time)
        variance = (x - mean.unsqueeze(time)).square_().mul_(weights).sum(dim=time)
        ctx.save_for_backward(x, weights, mean, variance)
        ctx.time, ctx.scores_dtype = time, scores.dtype
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, Tensor, None]:
        # With d_t = x_t - m: dm/dx_t = w_t, dv/dx_t = 2 w_t d_t, and through the softmax
        # dm/ds_t = w_t d_t, dv/ds_t = w_t (d_t**2 - v)
        x, weights, mean, variance = ctx.saved_tensors
        time, slope = ctx.time, 2.0 * of_variance
        of_x = _line(x, slope, of_mean - slope * mean, time).mul_(weights)
        centred = x - mean.unsqueeze(time)
        of_scores = _line(centred, of_variance, of_mean, time).mul_(centred)
        of_scores.sub_((of_variance * variance).unsqueeze(time)).mul_(weights)
        return of_x.to(x.dtype), of_scores.to(ctx.scores_dtype), None


def _line(x: Tensor, slope: Tensor, start: Tensor, time: int) -> Tensor:
    """``slope x + start``: ``x [B, C, T]`` and two ``[B, C]``, or ``[B, T, C]`` with ``time`` 1."""
    slope, start = slope.unsqueeze(time), start.unsqueeze(time)
    if time == 2:  # a CPU's layout: what is repeated along the last axis keeps one operation of three from vectors
        return (x * slope).add_(start)
    return torch.addcmul(start, x, slope)

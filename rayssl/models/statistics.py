"""Means and variances over time with handwritten gradients: the values of autograd, with a third of its memory reads.

Pooling reads far more values than it returns. So its cost is the number of times that it reads them. Autograd would
store every intermediate product and read it again.
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
    mean, variance = _Moments.apply(_wide(x), time)  # type: ignore[no-untyped-call]
    return mean, variance


def attended_moments(x: Tensor, scores: Tensor, time: int = 2) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``x [B, C, T]`` with the weights ``w = softmax(scores [B, C, T])`` over time.

    ``m = sum_t w_t x_t`` and ``v = sum_t w_t (x_t - m)**2``, each ``[B, C]``, in float32 at least. With ``time`` 1,
    both inputs are ``[B, T, C]``.
    """
    mean, variance = _AttendedMoments.apply(_wide(x), _wide(scores), time)  # type: ignore[no-untyped-call]
    return mean, variance


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=time)
        centred = x - mean.unsqueeze(time)
        ctx.save_for_backward(centred)
        ctx.time = time
        return mean, centred.square().mean(dim=time)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, None]:
        # dm/dx_t = 1/T; dv/dx_t = 2 (x_t - m) / T; the part through m is 0, because the deviations sum to 0
        (centred,) = ctx.saved_tensors
        time, frames = ctx.time, centred.shape[ctx.time]
        of_x = (centred * (2.0 / frames * of_variance).unsqueeze(time)).add_((of_mean / frames).unsqueeze(time))
        return of_x, None


class _AttendedMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, time: int) -> tuple[Tensor, Tensor]:
        weights = scores.softmax(dim=time)
        mean = (weights * x).sum(dim=time)
        centred = x - mean.unsqueeze(time)
        variance = centred.square().mul_(weights).sum(dim=time)
        ctx.save_for_backward(weights, centred, variance)
        ctx.time = time
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, Tensor, None]:
        # With d_t = x_t - m: dm/dx_t = w_t, dv/dx_t = 2 w_t d_t, and through the softmax
        # dm/ds_t = w_t d_t, dv/ds_t = w_t (d_t**2 - v)
        weights, centred, variance = ctx.saved_tensors
        of_mean, of_variance = of_mean.unsqueeze(ctx.time), of_variance.unsqueeze(ctx.time)
        of_x = (centred * (2.0 * of_variance)).add_(of_mean).mul_(weights)
        of_scores = (centred * of_variance).add_(of_mean).mul_(centred)
        of_scores.sub_(of_variance * variance.unsqueeze(ctx.time)).mul_(weights)
        return of_x, of_scores, None

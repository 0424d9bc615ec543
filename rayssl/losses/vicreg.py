"""Variance, invariance and covariance, the loss of VICReg (Bardes, Ponce and LeCun, ICLR 2022, Eq. 1 to 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import precise


class Terms(NamedTuple):
    """The three scalars of VICReg before their coefficients, float32, with gradient."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(
    a: Tensor, b: Tensor, *, keys_a: Tensor, keys_b: Tensor, floor: float = 1e-4, variance_mean: bool = False
) -> Terms:
    """The three terms of the loss ``lambda * invariance + mu * variance + nu * covariance``.

    There are ``n`` rows of ``D`` dimensions over all ranks. ``C`` is the unbiased covariance of the rows of a view::

        invariance = mean over i, d of (a_id - b_id)^2
        variance   = sum over both views of 1/D sum over d of max(0, 1 - sqrt(C_dd + floor))
        covariance = sum over both views of 1/D sum over d != e of C_de^2

    The invariance is the mean of the squared distance over dimensions, as in the authors' code and in speaker toolkits;
    the published coefficients belong to this mean. The paper's Eq. 5 has the sum. The variance is the sum of the
    paper's Eq. 6 over both views. The authors' code, for which 25, 25 and 1 were published, takes half of this sum. The
    speaker literature, with 1, 1 and 0.04, takes all of it. ``variance_mean`` takes the mean over both views, which is
    this half.

    ``a, b [B, D]`` are the two views of this rank. ``keys_a, keys_b [W*B, D]`` are those of all ranks, gathered with
    gradient; variance and covariance are computed from them. So the mean of the loss over ranks is that of the global
    batch, in value and in gradient. With one rank the keys are ``a, b`` themselves. The arithmetic is float32 (float64
    for float64 inputs), even under autocast. Raises `ValueError` if the shapes do not fit each other, if there are
    fewer than two rows, or if ``floor`` is not positive: the gradient of the square root would be infinite for a
    constant dimension.
    """
    if floor <= 0:
        raise ValueError(f"floor must be positive, got {floor}")
    if a.shape != b.shape or keys_a.shape != keys_b.shape or a.shape[1:] != keys_a.shape[1:]:
        raise ValueError(
            f"a {tuple(a.shape)}, b {tuple(b.shape)} are not rows of keys {tuple(keys_a.shape)}, {tuple(keys_b.shape)}"
        )
    if keys_a.shape[0] < 2:
        raise ValueError("a variance needs at least two rows")
    with torch.autocast(device_type=a.device.type, enabled=False):
        invariance = functional.mse_loss(precise(a), precise(b))
        covariances = [_covariance(precise(keys)) for keys in (keys_a, keys_b)]
        deviations = [torch.sqrt(matrix.diagonal() + floor) for matrix in covariances]
        below = torch.stack([functional.relu(1 - deviation).mean() for deviation in deviations])
        variance = below.mean() if variance_mean else below.sum()
        covariance = torch.stack([_off_diagonal(matrix) for matrix in covariances]).sum()
        return Terms(invariance, variance, covariance)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The sum of the squared covariances of different dimensions, divided by the number of dimensions."""
    return (matrix - torch.diag(matrix.diagonal())).square().sum() / len(matrix)

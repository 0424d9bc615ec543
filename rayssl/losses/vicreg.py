"""Variance, invariance and covariance, the loss of VICReg (Bardes, Ponce and LeCun, ICLR 2022, Eq. 1 to 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Terms(NamedTuple):
    """The three scalars of VICReg before their coefficients, float32, with gradient."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(a: Tensor, b: Tensor, *, keys_a: Tensor, keys_b: Tensor, floor: float = 1e-4) -> Terms:
    """The terms that ``lambda * invariance + mu * variance + nu * covariance`` weighs.

    With ``n`` rows of ``D`` dimensions over all ranks, ``C`` the unbiased covariance of a view's rows::

        invariance = mean over i, d of (a_id - b_id)^2
        variance   = sum over both views of 1/D sum over d of max(0, 1 - sqrt(C_dd + floor))
        covariance = sum over both views of 1/D sum over d != e of C_de^2

    The paper's Eq. 5 sums the squared distance over dimensions where this takes the mean: so do the authors' code and
    the speaker toolkits, and the published coefficients belong to it. The variance is the sum over both views of the
    paper's Eq. 6; the authors' code, for which 25, 25 and 1 were published, takes half of it, the speaker
    literature's 1, 1 and 0.04 all of it.

    ``a, b [B, D]`` are this rank's two views, ``keys_a, keys_b [W*B, D]`` those of all ranks, which the statistics are
    taken over: gathered with gradient, so that the mean over ranks of the loss is that of the global batch in gradient
    too. With one rank the keys are ``a, b`` themselves. The arithmetic is float32 (float64 for float64 inputs) even
    under autocast. Raises `ValueError` for shapes that do not fit each other, fewer than two rows, or a floor that is
    not positive (the root's slope at a constant dimension would be infinite).
    """
    if floor <= 0:
        raise ValueError(f"floor must be positive, got {floor}")
    if a.shape != b.shape or keys_a.shape != keys_b.shape or a.shape[1:] != keys_a.shape[1:]:
        raise ValueError(
            f"a {tuple(a.shape)}, b {tuple(b.shape)} are no rows of keys {tuple(keys_a.shape)}, {tuple(keys_b.shape)}"
        )
    if keys_a.shape[0] < 2:
        raise ValueError("a variance needs at least two rows")
    with torch.autocast(device_type=a.device.type, enabled=False):
        invariance = functional.mse_loss(_precise(a), _precise(b))
        covariances = [_covariance(_precise(keys)) for keys in (keys_a, keys_b)]
        deviations = [torch.sqrt(matrix.diagonal() + floor) for matrix in covariances]
        variance = torch.stack([functional.relu(1 - deviation).mean() for deviation in deviations]).sum()
        covariance = torch.stack([_off_diagonal(matrix) for matrix in covariances]).sum()
        return Terms(invariance, variance, covariance)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The mean over dimensions of each one's squared covariances with all others."""
    return (matrix - torch.diag(matrix.diagonal())).square().sum() / len(matrix)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

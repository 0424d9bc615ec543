"""Semantic aggregation: the triplet mutual information of USADTM (Han et al., NeurIPS 2020)."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from rayssl.losses.rows import precise


def joint(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The probability that three views of a clip get the classes i, j and k: float32 ``[C, C, C]`` with sum 1. ::

        P_ijk = 1/B sum over rows of a_i b_j c_k,    averaged over the six orders of the views

    ``a, b, c [B, C]`` are the class probabilities of the original, the weakly and the strongly distorted view. The
    result is that of this rank. The result of the global batch is the mean over ranks, which must be taken with
    gradient. Pass this mean to `mutual_information`, because that function is not linear. The cost is B C^3 products
    and a few times C^3 numbers, which also go between ranks, so it is for up to about 50 classes. The arithmetic is
    float32 (float64 for float64 inputs), even under autocast. Raises `ValueError` if the shapes do not fit each other,
    or if there are no rows.
    """
    if not a.shape == b.shape == c.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"not probabilities of three views: {tuple(a.shape)}, {tuple(b.shape)}, {tuple(c.shape)}")
    with torch.autocast(device_type=a.device.type, enabled=False):
        p = torch.einsum("ni,nj,nk->ijk", precise(a), precise(b), precise(c)) / len(a)
        return torch.stack([p.permute(order) for order in permutations(range(3))]).mean(dim=0)


def mutual_information(joint: Tensor) -> Tensor:
    """The mutual information of the classes of three views, in nats; a scalar in 0..2 log C. The loss is ``-I``. ::

        I = sum over i, j, k of P_ijk log( P_ijk / (P_i P_j P_k) )

    ``P = joint [C, C, C]`` is made by `joint`; ``P_i, P_j, P_k`` are its marginals. I is 0 if the views are
    independent, or if all clips are in one class. It is 2 log C if the views agree and all classes are equally
    frequent. The authors' code takes the mean of the mutual informations of the three pairs of views instead. If P is
    0, the logarithm of the smallest positive number is used, so that value and gradient are finite. Raises `ValueError`
    if ``joint`` does not have three equal dimensions.
    """
    if joint.ndim != 3 or len(set(joint.shape)) != 1:
        raise ValueError(f"joint must be [C, C, C], got {tuple(joint.shape)}")
    with torch.autocast(device_type=joint.device.type, enabled=False):
        p = precise(joint)
        marginals = [p.sum(dim=others) for others in ((1, 2), (0, 2), (0, 1))]
        return torch.stack([_entropy(marginal) for marginal in marginals]).sum() - _entropy(p)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()

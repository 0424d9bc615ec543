"""Semantic aggregation: the triplet mutual information of USADTM (Han et al., NeurIPS 2020)."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor


def joint(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """How often three views of one clip are given the classes i, j and k: float32 ``[C, C, C]``, its sum is 1. ::

        P_ijk = 1/B sum over rows of a_i b_j c_k,    averaged over the six orders of the views

    ``a, b, c [B, C]`` are the class probabilities of the original, the weakly and the strongly distorted view. It is
    this rank's: the mean over ranks, taken with gradient, is the global batch's, and `mutual_information` is to be of
    that one, for it is not linear. It costs B C^3 products and a few times C^3 numbers, also between ranks: for up to
    about 50 classes. The arithmetic is float32 (float64 for float64 inputs) even under autocast. Raises `ValueError`
    for shapes that do not fit each other, or no rows.
    """
    if not a.shape == b.shape == c.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"no probabilities of three views: {tuple(a.shape)}, {tuple(b.shape)}, {tuple(c.shape)}")
    with torch.autocast(device_type=a.device.type, enabled=False):
        p = torch.einsum("ni,nj,nk->ijk", _wide(a), _wide(b), _wide(c)) / len(a)
        return torch.stack([p.permute(order) for order in permutations(range(3))]).mean(dim=0)


def mutual_information(joint: Tensor) -> Tensor:
    """What the three views tell of each other's classes, in nats; a scalar in 0..2 log C. The loss is minus it. ::

        I = sum over i, j, k of P_ijk log( P_ijk / (P_i P_j P_k) )

    with ``P = joint [C, C, C]`` as of `joint` and ``P_i, P_j, P_k`` its marginals: 0 where views are independent, or
    all clips in one class; 2 log C where they agree and all classes are used alike. The authors' published code takes
    the mean of the three pairs' mutual informations instead. Where P is 0 its logarithm counts as one of the smallest
    number there is, so that value and gradient are finite. Raises `ValueError` where ``joint`` is no cube.
    """
    if joint.ndim != 3 or len(set(joint.shape)) != 1:
        raise ValueError(f"joint must be [C, C, C], got {tuple(joint.shape)}")
    with torch.autocast(device_type=joint.device.type, enabled=False):
        p = _wide(joint)
        marginals = [p.sum(dim=others) for others in ((1, 2), (0, 2), (0, 1))]
        return torch.stack([_entropy(marginal) for marginal in marginals]).sum() - _entropy(p)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""The loss of SDPN (Chen et al., ICASSP 2025, arXiv 2308.02774): cross-entropy to shared prototypes, and regularisers.

The cross-entropy, the balanced codes of the teacher and the regulariser of the mean prediction are those of MSN (Assran
et al., ECCV 2022), as in the authors' public code (3D-Speaker). `koleo` is the paper's diversity regularisation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rayssl.losses.rows import precise, unit
from rayssl.losses.swav import sinkhorn

_LEAST_DISTANCE = 1e-4


class Prediction(NamedTuple):
    """The cross-entropy, a scalar with gradient; and ``mean [K]``, the mean of the student's distributions."""

    loss: Tensor
    mean: Tensor


def prediction(students: Tensor, codes: Tensor, *, temperature: float) -> Prediction:
    """Cross-entropy of the student's distributions for V crops against the teacher's codes, mean over crops and rows.

    ``students [V, B, K]`` are cosines of the student's outputs and the prototypes; ``codes [B, K]`` are those of
    `balanced` for the same utterances::

        q_v = softmax(students[v] / temperature),    loss = -1/(V B) sum over v and rows of codes . log q_v

    No gradient flows to the codes. The loss is the mean over the rows of this rank, and ``mean`` too; the means over
    ranks are those of the global batch. The arithmetic is float32 (float64 for float64 inputs), even under autocast.
    Raises `ValueError` if the shapes do not fit, or if ``temperature`` is not positive.
    """
    if students.ndim != 3 or students.shape[1:] != codes.shape:
        raise ValueError(f"students {tuple(students.shape)} are not [V, B, K] for codes {tuple(codes.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(device_type=students.device.type, enabled=False):
        logs = (precise(students) / temperature).log_softmax(dim=2)
        loss = -(codes.detach() * logs.mean(dim=0)).sum(dim=1).mean()  # linear in the logarithms: crops first
        return Prediction(loss, logs.exp().mean(dim=(0, 1)))


@torch.no_grad()
def balanced(keys: Tensor, *, temperature: float, iterations: int) -> Tensor:
    """The teacher's codes ``[N, K]`` for its cosines ``keys [N, K]`` of the global batch, without gradient.

    ``softmax(keys / temperature)`` is made balanced by ``iterations`` of Sinkhorn-Knopp: all prototypes are used about
    equally, and each row sums to 1. MSN writes the temperature as that of the student times that of a sharpening: 0.1
    and 0.25 are a temperature of 0.025 here. Raises `ValueError` if ``temperature`` or ``iterations`` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    # from rows that sum to 1, as in MSN: from exp(keys / temperature), as in SwAV, rows would count differently
    return sinkhorn((precise(keys) / temperature).log_softmax(dim=1), epsilon=1.0, iterations=iterations)


def unevenness(mean: Tensor) -> Tensor:
    """``log K - H(mean)`` in nats, of the mean prediction ``mean [K]`` of the global batch; a scalar in 0..log K.

    0 if the student uses all prototypes equally. Its minimum is that of MSN's mean entropy maximisation.
    """
    negative_entropy: Tensor = torch.special.xlogy(mean, mean).sum()
    return negative_entropy + math.log(len(mean))


def koleo(rows: Tensor, keys: Tensor, *, offset: int) -> Tensor:
    """How close rows are to their nearest neighbours (KoLeo, Sablayrolles et al., ICLR 2019); a scalar, mean over B.

    With rows of length 1 and Euclidean distances::

        loss = -1/B sum over i of log min over j != i of |x_i - x_j|

    ``rows [B, D]`` are embeddings of this rank and ``keys [N, D]`` those of all ranks, gathered with gradient;
    ``offset`` is the row of this rank's first utterance in them (rank * B). So the mean over ranks is the loss of the
    global batch, in value and gradient. (The public code searches among the rows of each rank alone.) A distance below
    0.0001 counts as 0.0001 and has no gradient, which would be infinite for two equal recordings. The arithmetic is
    float32 (float64 for float64 inputs), even under autocast. Raises `ValueError` if there are fewer than two keys, or
    if the shapes do not fit.
    """
    count, total = len(rows), len(keys)
    if total < 2:
        raise ValueError("a nearest neighbour needs at least two rows")
    if rows.shape[1:] != keys.shape[1:] or not 0 <= offset <= total - count:
        raise ValueError(
            f"rows {tuple(rows.shape)} are not rows {offset}..{offset + count} of keys {tuple(keys.shape)}"
        )
    with torch.autocast(device_type=rows.device.type, enabled=False):
        rows, keys = unit(rows), unit(keys)
        with torch.no_grad():
            numbers = torch.arange(total, device=rows.device)
            own = numbers[None] == numbers[offset : offset + count, None]
            nearest = (rows @ keys.T).masked_fill(own, -2.0).argmax(dim=1)
        distances: Tensor = torch.linalg.vector_norm(rows - keys[nearest], dim=1)
        return -distances.clamp_min(_LEAST_DISTANCE).log().mean()


def decorrelation(keys: Tensor) -> Tensor:
    """How far the dimensions of ``keys [N, D]`` are from having the same variance and no correlation; a scalar.

    ``C`` is the unbiased covariance of the rows, each with a length of ``sqrt(D)``, so that C is near the identity if
    they are spread over all directions::

        loss = 1/D |C - I|^2    (the Frobenius norm)

    ``keys`` are the embeddings of all ranks, gathered with gradient. It is a dimension regularisation as arXiv
    2505.13826 adds to SDPN: their terms are of the same kind, off-diagonal and Frobenius, but the equations and the
    weights of that paper were not compared with this one. Float32 at least, even under autocast. Raises `ValueError`
    if there are fewer than two rows.
    """
    if len(keys) < 2:
        raise ValueError("a covariance needs at least two rows")
    with torch.autocast(device_type=keys.device.type, enabled=False):
        x = unit(keys) * math.sqrt(keys.shape[1])
        x = x - x.mean(dim=0)
        covariance = x.T @ x / (len(x) - 1)
        identity = torch.eye(len(covariance), dtype=x.dtype, device=x.device)
        return (covariance - identity).square().sum() / len(covariance)

"""Semi-supervised contrastive loss: labelled epochs attract unlabelled ones (SleepFormer, ICLR workshop 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rayssl.losses.rows import unit


def ssc(
    anchors: Tensor,
    classes: Tensor,
    candidates: Tensor,
    predicted: Tensor,
    *,
    temperature: float = 0.07,
    threshold: float = 0.0,
    normaliser: Literal["soft", "count"] = "soft",
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of labelled anchors against unlabelled candidates of their class: its sum, and how many count.

    All rows are L2-normalised here. ``z̄_m`` is the anchor m of class ``y_m``, without gradient; ``z_i`` is candidate i,
    and ``ŷ_i`` its predicted distribution, without gradient. ``p_mi = ŷ_i[y_m]`` is the probability that i is of m's
    class. ``P(m)`` are the candidates that can be trusted, those with ``p_mi >= threshold`` and ``p_mi > 0``::

        l_m = -1/norm sum over i in P(m) of p_mi log( exp(z̄_m . z_i / t) / sum over k of exp(z̄_m . z_k / t) )

    ``norm`` is the sum of ``p_mi`` over P(m) (``soft``), or the size of P(m) (``count``). The paper's text gives p and
    the anchors; the threshold, the normaliser and a denominator over unlabelled epochs alone are our reading. An anchor
    whose P(m) is empty has ``l_m`` = 0 and does not count.

    ``anchors [M, D]``, ``classes [M]`` int64 in 0..C-1, ``candidates [K, D]``, ``predicted [K, C]``. ``weights [M]``
    >= 0: how much an anchor counts; give 0 for the empty places of a memory. A negative class counts as weight 0.
    ``valid [K]`` bool: candidates that are no epoch (the padding of a night) are in no sum.

    Returns ``sum of w_m l_m`` (float32, float64 for float64 inputs, even under autocast) and the sum of the weights of
    the anchors that count. The loss is their quotient. With W ranks, ``candidates``, ``predicted`` and ``valid`` are
    those of all ranks, gathered with gradient, and the anchors are this rank's own; sum both results over ranks before
    the division (`rayssl.methods.semi.global_mean`). Waits for nothing on the host. Raises `ValueError` if the shapes
    do not fit or a setting is impossible.
    """
    _check(anchors, classes, candidates, predicted, temperature, threshold, normaliser, weights, valid)
    with torch.autocast(device_type=candidates.device.type, enabled=False):
        z = unit(candidates)
        logits = unit(anchors.detach()).to(z.dtype) @ z.T / temperature
        p = predicted.detach().to(z.dtype).T.index_select(0, classes.clamp_min(0))
        trusted = (p >= threshold) & (p > 0)
        if valid is not None:
            # finite, so that without any candidate there is no NaN
            logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min / 2)
            trusted = trusted & valid
        p = p.masked_fill(~trusted, 0)
        norm = p.sum(dim=1) if normaliser == "soft" else trusted.sum(dim=1).to(z.dtype)
        counted = (trusted.any(dim=1) & (classes >= 0)).to(z.dtype)
        if weights is not None:
            counted = counted * weights.detach().to(z.dtype)
        attracted = (p * logits.log_softmax(dim=1)).sum(dim=1) / torch.where(norm > 0, norm, 1)
        return -(counted * attracted).sum(), counted.sum()


def _check(
    anchors: Tensor,
    classes: Tensor,
    candidates: Tensor,
    predicted: Tensor,
    temperature: float,
    threshold: float,
    normaliser: str,
    weights: Tensor | None,
    valid: Tensor | None,
) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    if normaliser not in ("soft", "count"):
        raise ValueError(f"normaliser must be soft or count, got {normaliser}")
    if anchors.shape[1:] != candidates.shape[1:] or classes.shape != anchors.shape[:1]:
        raise ValueError(
            f"anchors {tuple(anchors.shape)}, classes {tuple(classes.shape)} and candidates {tuple(candidates.shape)} "
            "do not fit"
        )
    if predicted.dim() != 2 or len(predicted) != len(candidates):
        raise ValueError(f"predicted {tuple(predicted.shape)} must be [{len(candidates)}, C]")
    if weights is not None and weights.shape != classes.shape:
        raise ValueError(f"weights {tuple(weights.shape)} must be [{len(anchors)}]")
    if valid is not None and (valid.shape != candidates.shape[:1] or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool [{len(candidates)}], got {valid.dtype} {tuple(valid.shape)}")

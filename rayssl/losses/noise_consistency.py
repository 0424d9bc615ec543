"""Noise consistency: the same stages with and without the noise of a home (HomeSleepNet, Tran et al., 2023)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rayssl.losses.rows import precise


def noise_consistency(
    clean: Tensor,
    noisy: Tensor,
    *,
    distance: Literal["js", "kl", "mse"] = "js",
    detach_clean: bool = False,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The distance of the predictions for two views of the same epochs: its sum, and the number of epochs.

    With ``p = softmax(clean_i)``, ``q = softmax(noisy_i)`` and ``m = (p + q) / 2`` for epoch i::

        js:   d_i = (KL(p || m) + KL(q || m)) / 2     0..log 2, symmetric
        kl:   d_i = KL(p || q) = sum over c of p_c log(p_c / q_c)
        mse:  d_i = 1/C sum over c of (p_c - q_c)^2

    HomeSleepNet's abstract does not say which; ``js`` is our choice. ``clean, noisy [..., C]`` are logits.
    ``detach_clean``: the clean view is a target without gradient. ``valid [...]`` bool: other epochs (the padding of a
    night) are left out.

    Returns ``sum of d_i`` (float32, float64 for float64 inputs, even under autocast) and the number of epochs in that
    sum. The loss is their quotient. With W ranks, sum both over ranks before the division
    (`rayssl.methods.semi.global_mean`). Raises `ValueError` if the shapes do not fit or the distance is unknown.
    """
    if clean.shape != noisy.shape or clean.dim() < 2:
        raise ValueError(f"clean {tuple(clean.shape)} and noisy {tuple(noisy.shape)} must be the same [..., C]")
    if distance not in ("js", "kl", "mse"):
        raise ValueError(f"distance must be js, kl or mse, got {distance}")
    if valid is not None and (valid.shape != clean.shape[:-1] or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool {tuple(clean.shape[:-1])}, got {valid.dtype} {tuple(valid.shape)}")
    with torch.autocast(device_type=clean.device.type, enabled=False):
        log_p, log_q = _log_share(clean.detach() if detach_clean else clean), _log_share(noisy)
        if distance == "js":
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            found = (_divergence(log_p, log_m) + _divergence(log_q, log_m)) / 2
        elif distance == "kl":
            found = _divergence(log_p, log_q)
        else:
            found = (log_p.exp() - log_q.exp()).square().mean(dim=-1)
        if valid is None:
            return found.sum(), torch.full((), found.numel(), dtype=found.dtype, device=found.device)
        return found.masked_fill(~valid, 0).sum(), valid.sum().to(found.dtype)


def _log_share(logits: Tensor) -> Tensor:
    return precise(logits).log_softmax(dim=-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)

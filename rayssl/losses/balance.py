"""Logit adjustment for classes of unequal size (Menon et al., ICLR 2021, Eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import precise


def adjusted_cross_entropy(logits: Tensor, labels: Tensor, *, log_prior: Tensor, tau: float) -> Tensor:
    """Cross-entropy of logits to which the classes' frequencies are added, mean over B rows; a scalar, float32. ::

        l_i = -log softmax(logits_i + tau log pi)[labels_i]

    Because the frequencies are added in the loss, the logits need not learn them. So the logits alone, which are used
    for prediction, do not prefer a class because it is frequent. With ``tau`` 1 they are consistent for the balanced
    error; 0 is ordinary cross-entropy.

    ``logits [B, C]``; ``labels [B]`` int64 in 0..C-1 (leave out rows without a label); ``log_prior [C]`` from
    `log_prior`. The mean over ranks is the loss of the global batch if all ranks have the same prior. The arithmetic is
    float32 (float64 for float64 inputs), even under autocast. Raises `ValueError` if the shapes do not fit or ``tau``
    is negative.
    """
    if tau < 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    if labels.shape != logits.shape[:1] or log_prior.shape != logits.shape[1:]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and log_prior {tuple(log_prior.shape)} do not fit logits "
            f"{tuple(logits.shape)}"
        )
    with torch.autocast(device_type=logits.device.type, enabled=False):
        wide = precise(logits)
        return functional.cross_entropy(wide + tau * log_prior.to(wide), labels)


@torch.no_grad()
def log_prior(counts: Tensor) -> Tensor:
    """``log pi``: the logarithms of the shares of the classes in ``counts [C]``, float32 ``[C]``. The shares sum to 1.

    A count of 0 is replaced by 1. With a share of 0 the logit would be -inf: it would have no gradient, and the loss of
    a row with this label would be infinite. If all counts are 0, the prior is uniform. Raises `ValueError` if there is
    no class, or if a count is negative.
    """
    if counts.ndim != 1 or not len(counts) or bool((counts < 0).any()):
        raise ValueError(f"counts must be numbers >= 0 of at least one class, got {counts.tolist()}")
    seen = counts.double().clamp_min(1)
    return (seen.log() - seen.sum().log()).float()

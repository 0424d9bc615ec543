"""Logit adjustment for classes of unequal size (Menon et al., ICLR 2021, Eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def adjusted_cross_entropy(logits: Tensor, labels: Tensor, *, log_prior: Tensor, tau: float) -> Tensor:
    """Cross-entropy of logits that have been given the classes' frequencies, mean over B rows; a scalar, float32. ::

        l_i = -log softmax(logits_i + tau log pi)[labels_i]

    What the frequencies explain need not be learnt: the bare logits, which are used afterwards, favour no class for
    being common. ``tau`` 1 makes them consistent for the balanced error, 0 is plain cross-entropy. ``logits [B, C]``,
    ``labels [B]`` int64 in 0..C-1 (rows without a label are not given), ``log_prior [C]`` as of `log_prior`. The mean
    over ranks is the loss of the global batch if all have the same prior. The arithmetic is float32 (float64 for
    float64 inputs) even under autocast. Raises `ValueError` for shapes that do not fit and a negative ``tau``.
    """
    if tau < 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    if labels.shape != logits.shape[:1] or log_prior.shape != logits.shape[1:]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and log_prior {tuple(log_prior.shape)} do not fit logits "
            f"{tuple(logits.shape)}"
        )
    with torch.autocast(device_type=logits.device.type, enabled=False):
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(wide + tau * log_prior.to(wide), labels)


@torch.no_grad()
def log_prior(counts: Tensor) -> Tensor:
    """``log pi``, the logarithms of the classes' shares of ``counts [C]``: float32 ``[C]``, exponentials summing to 1.

    A class of count 0 is taken as one with a single example: a share of 0 would make its logit -inf, which no gradient
    would reach and a label of it infinitely wrong. Of no counts at all the prior is uniform. Raises `ValueError` where
    there is no class, or a count is negative.
    """
    if counts.ndim != 1 or not len(counts) or bool((counts < 0).any()):
        raise ValueError(f"counts must be numbers >= 0 of at least one class, got {counts.tolist()}")
    seen = counts.double().clamp_min(1)
    return (seen.log() - seen.sum().log()).float()

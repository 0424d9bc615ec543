"""Cross-entropy over the epochs of a sequence, with weights for rare stages and epochs that are left out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import precise

_UNSCORED = -1


def sequence_cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over scored epochs: its sum, and the number of scored epochs. ::

        total = sum over scored i of -w[y_i] log softmax(logits_i)[y_i]

    ``logits [..., C]``; ``labels [...]`` int64 in 0..C-1, or -1 for an epoch that nobody has scored. ``valid [...]``
    bool: other epochs (the padding of a night) are left out too. ``weights [C]`` from `stage_weights`; without them all
    are 1.

    Returns the total (float32, float64 for float64 inputs, even under autocast) and the number of epochs in it. The
    loss is their quotient, 0 without epochs; it divides by the number also with weights. With W ranks, sum both over
    ranks before the division (`rayssl.methods.semi.global_mean`). Raises `ValueError` if the shapes do not fit.
    """
    if logits.dim() < 2 or labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    if weights is not None and weights.shape != logits.shape[-1:]:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit logits {tuple(logits.shape)}")
    if valid is not None and (valid.shape != labels.shape or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool {tuple(labels.shape)}, got {valid.dtype} {tuple(valid.shape)}")
    with torch.autocast(device_type=logits.device.type, enabled=False):
        wide = precise(logits).flatten(0, -2)
        counted = labels if valid is None else labels.masked_fill(~valid, _UNSCORED)
        total = functional.cross_entropy(
            wide,
            counted.flatten(),
            weight=None if weights is None else weights.to(wide),
            ignore_index=_UNSCORED,
            reduction="sum",
        )
        return total, (counted != _UNSCORED).sum().to(wide.dtype)


@torch.no_grad()
def stage_weights(counts: Tensor, *, power: float = 0.5) -> Tensor:
    """Weights that grow with the rarity of a class, float32 ``[C]``::

        w_c = a n_c^-power,    a so that the mean weight of the labelled epochs, sum n_c w_c / sum n_c, is 1

    ``counts [C]``: how many labelled epochs have the class; a count of 0 is taken as 1. With ``power`` 0 all weights
    are 1; with 1 all classes weigh the same together. The mean over epochs, and not over classes, is 1, so that the
    size of the loss, and of its gradient, stays that of the loss without weights. Raises `ValueError` if there is no
    class, or if a count or ``power`` is negative.
    """
    if counts.ndim != 1 or not len(counts) or bool((counts < 0).any()):
        raise ValueError(f"counts must be numbers >= 0 of at least one class, got {counts.tolist()}")
    if power < 0:
        raise ValueError(f"power must not be negative, got {power}")
    seen = counts.double().clamp_min(1)
    raw = seen.pow(-power)
    return (raw * seen.sum() / (seen * raw).sum()).float()

"""CCSSL: class-aware contrastive learning from pseudo-labels (Yang et al., CVPR 2022, Eq. 5 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from rayssl.losses.rows import check_views, unit


def ccssl(
    a: Tensor,
    b: Tensor,
    pseudo: Tensor,
    *,
    keys_a: Tensor,
    keys_b: Tensor,
    key_pseudo: Tensor,
    offset: int,
    temperature: float = 0.07,
    push: float = 0.0,
    valid: Tensor | None = None,
    key_valid: Tensor | None = None,
) -> Tensor:
    """SupCon whose positives count by their confidence, mean over this rank's 2B anchors; a scalar, float32.

    ``z`` are the ``2n`` L2-normalised keys (``keys_a``, then ``keys_b``, ``n = W*B``); ``y_i`` is the pseudo-label of
    ``i``, a distribution that both views share. With ``w_ik = max y_i max y_k`` for keys of the same argmax, and 1 for
    the other view of ``i``::

        l_i = -1/(sum of w_ik) sum over k != i of w_ik log( exp(z_i . z_k / t) / sum over j != i of exp(z_i . z_j / t) )

    Rows whose confidence ``max y`` is below ``push`` (T_push; .9 in the paper, 0 keeps all) have only their other view
    as a positive, and are none for others. They stay negatives. So a row of zeros in ``pseudo`` is one without a label.
    If all confidences are 1 this is SupCon; if all are 0, NT-Xent.

    ``a, b [B, D]`` are the two views of this rank (any norm), ``pseudo [B, C]`` their pseudo-labels; no gradient flows
    to them. ``keys_a, keys_b [W*B, D]`` and ``key_pseudo [W*B, C]`` are those of all ranks in rank order, the keys
    gathered with gradient. ``offset`` is the row of this rank's first epoch in them (rank * B). With one rank the keys
    are ``a, b, pseudo`` themselves. ``valid [B]`` and ``key_valid [W*B]`` bool: other rows (the padding of a night) are
    neither anchors nor keys, and the mean is over the valid anchors; 0 if there is none. The mean over ranks is the
    loss of the global batch. The arithmetic is float32 (float64 for float64 inputs), even under autocast. Raises
    `ValueError` if the shapes do not fit each other or the temperature is not positive.
    """
    _check(a, b, pseudo, keys_a, keys_b, key_pseudo, offset, temperature, valid, key_valid)
    rows, total = a.shape[0], keys_a.shape[0]
    with torch.autocast(device_type=a.device.type, enabled=False):
        anchors, keys = unit(torch.cat([a, b])), unit(torch.cat([keys_a, keys_b]))
        own = torch.arange(offset, offset + rows, device=a.device)
        itself = torch.cat([own, own + total])[:, None]
        other_view = torch.cat([own + total, own])[:, None]
        weights = _pair_weights(pseudo.detach().to(keys.dtype), key_pseudo.detach().to(keys.dtype), push).repeat(2, 2)
        weights = weights.scatter(1, other_view, 1.0).scatter(1, itself, 0.0)
        logits = anchors @ keys.T / temperature
        if key_valid is not None:
            # finite, so that an anchor that is not valid, and alone, has no NaN
            logits = logits.masked_fill(~key_valid.repeat(2), torch.finfo(logits.dtype).min / 2)
            weights = weights.masked_fill(~key_valid.repeat(2), 0.0).scatter(1, other_view, 1.0)
        log_share = logits.scatter(1, itself, float("-inf")).log_softmax(dim=1)
        # the anchor's own entry is -inf, and times 0 it would be NaN
        per_anchor = (weights * log_share.scatter(1, itself, 0.0)).sum(dim=1) / weights.sum(dim=1)
        if valid is None or key_valid is None:
            return -per_anchor.mean()
        # all ranks divide by the same number, so that the mean over ranks is the mean over all valid anchors
        share = 2 * key_valid.sum() * rows / total
        return -per_anchor.masked_fill(~valid.repeat(2), 0.0).sum() / share.clamp_min(rows / total)


def _pair_weights(pseudo: Tensor, key_pseudo: Tensor, push: float) -> Tensor:
    """``w [B, W*B]``"""
    confidence, label = pseudo.max(dim=1)
    key_confidence, key_label = key_pseudo.max(dim=1)
    sure = (confidence >= push)[:, None] & (key_confidence >= push)
    same = label[:, None] == key_label
    return torch.where(sure & same, confidence[:, None] * key_confidence, 0.0)


def _check(
    a: Tensor,
    b: Tensor,
    pseudo: Tensor,
    keys_a: Tensor,
    keys_b: Tensor,
    key_pseudo: Tensor,
    offset: int,
    temperature: float,
    valid: Tensor | None,
    key_valid: Tensor | None,
) -> None:
    rows, total = a.shape[0], keys_a.shape[0]
    check_views(a, b, keys_a, keys_b, offset=offset, temperature=temperature)
    if pseudo.dim() != 2 or len(pseudo) != rows or key_pseudo.shape != (total, pseudo.shape[1]):
        raise ValueError(
            f"pseudo {tuple(pseudo.shape)} and key_pseudo {tuple(key_pseudo.shape)} are not those of {rows} rows and "
            f"{total} keys"
        )
    if (valid is None) != (key_valid is None):
        raise ValueError("give both of valid and key_valid, or neither")
    for name, given, size in (("valid", valid, rows), ("key_valid", key_valid, total)):
        if given is not None and (given.shape != (size,) or given.dtype != torch.bool):
            raise ValueError(f"{name} must be bool [{size}], got {given.dtype} {tuple(given.shape)}")

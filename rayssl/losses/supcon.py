"""SupCon, the contrastive loss with labels (Khosla et al., NeurIPS 2020, Eq. 2: L_out)."""

from __future__ import annotations

import torch
from torch import Tensor

from rayssl.losses.rows import check_views, unit


def supcon(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    keys_a: Tensor,
    keys_b: Tensor,
    key_labels: Tensor,
    offset: int,
    temperature: float,
) -> Tensor:
    """Cross-entropy of each anchor against all rows of its class, mean over this rank's 2B anchors; a scalar, float32.

    ``z`` are the ``2n`` L2-normalised keys (``keys_a``, then ``keys_b``, ``n = W*B``). ``P(i)`` are the keys except
    ``i`` that have the same label, including the other view of ``i``::

        l_i = -1/|P(i)| sum over p in P(i) of log( exp(z_i . z_p / t) / sum over k != i of exp(z_i . z_k / t) )

    If the label of a row is unknown (negative), its only positive is its other view, and it is a negative for all other
    rows. If no label is known, this is NT-Xent. The authors' code takes the mean over anchors, as here; the paper sums
    over anchors.

    ``a, b [B, D]`` are the two views of this rank (any norm), and ``labels [B]`` their integer labels. ``keys_a, keys_b
    [W*B, D]`` and ``key_labels [W*B]`` are those of all ranks in rank order, the keys gathered with gradient.
    ``offset`` is the row of this rank's first utterance in them (rank * B). With one rank the keys are ``a, b, labels``
    themselves. The mean over ranks is the loss of the global batch. The arithmetic is float32 (float64 for float64
    inputs), even under autocast. Raises `ValueError` if the shapes do not fit each other or the temperature is not
    positive.
    """
    _check(a, b, labels, keys_a, keys_b, key_labels, offset, temperature)
    rows, total = a.shape[0], keys_a.shape[0]
    with torch.autocast(device_type=a.device.type, enabled=False):
        anchors = unit(torch.cat([a, b]))
        keys = unit(torch.cat([keys_a, keys_b]))
        own = torch.arange(offset, offset + rows, device=a.device)
        itself = torch.cat([own, own + total])[:, None]
        other_view = torch.cat([own + total, own])[:, None]
        same = (labels[:, None] == key_labels[None]) & (labels[:, None] >= 0)
        positive = same.repeat(2, 2).scatter(1, other_view, True).scatter(1, itself, False)
        log_share = (anchors @ keys.T / temperature).scatter(1, itself, float("-inf")).log_softmax(dim=1)
        # `where` and not a product: the anchor's own entry is -inf, and times 0 it would be NaN
        per_anchor = torch.where(positive, log_share, 0).sum(dim=1) / positive.sum(dim=1)
        return -per_anchor.mean()


def _check(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    keys_a: Tensor,
    keys_b: Tensor,
    key_labels: Tensor,
    offset: int,
    temperature: float,
) -> None:
    rows, total = a.shape[0], keys_a.shape[0]
    check_views(a, b, keys_a, keys_b, offset=offset, temperature=temperature)
    if labels.shape != (rows,) or key_labels.shape != (total,):
        raise ValueError(
            f"labels {tuple(labels.shape)} and key_labels {tuple(key_labels.shape)} are not those of {rows} rows and "
            f"{total} keys"
        )

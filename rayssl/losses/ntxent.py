"""NT-Xent, the contrastive loss of SimCLR (SSPS paper, Eq. 1; CLAR, Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import check_views, unit


def ntxent(
    a: Tensor,
    b: Tensor,
    *,
    keys_a: Tensor,
    keys_b: Tensor,
    offset: int,
    temperature: float,
    left_out: Tensor | None = None,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy, mean over this rank's 2B anchors; a scalar >= 0, float32.

    ``z`` are the ``2n`` L2-normalised keys (``keys_a``, then ``keys_b``, ``n = W*B``). ``p(i)`` is the other view of
    anchor ``i``::

        l_i = -log( exp(z_i . z_p(i) / t) / sum over k != i of exp(z_i . z_k / t) )

    ``a, b [B, D]`` are the two views of this rank (any norm), ``keys_a, keys_b [W*B, D]`` those of all ranks in rank
    order, gathered with gradient. ``offset`` is the row of this rank's first utterance in the keys (rank * B). With one
    rank the keys are ``a, b`` themselves. Every row of both views is an anchor. The mean over ranks is the loss of the
    global batch.

    ``left_out``, bool ``[B, W*B]``: which utterances are no negatives of each of this rank's, in both views. The own
    utterance's does not count. None: all others are negatives.

    The arithmetic is float32 (float64 for float64 inputs), even under autocast: at t = 0.03 logits reach 33, where
    neighbouring bfloat16 numbers differ by 0.25. Raises `ValueError` if the shapes do not fit each other or
    the temperature is not positive.
    """
    rows, total = a.shape[0], keys_a.shape[0]
    check_views(a, b, keys_a, keys_b, offset=offset, temperature=temperature)
    if left_out is not None and left_out.shape != (rows, total):
        raise ValueError(f"left_out {tuple(left_out.shape)} is not [{rows}, {total}]")
    with torch.autocast(device_type=a.device.type, enabled=False):
        anchors = unit(torch.cat([a, b]))
        keys = unit(torch.cat([keys_a, keys_b]))
        own = torch.arange(offset, offset + rows, device=a.device)
        itself = torch.cat([own, own + total])
        positive = torch.cat([own + total, own])
        logits = (anchors @ keys.T / temperature).scatter(1, itself[:, None], float("-inf"))
        if left_out is not None:
            logits = logits.masked_fill(left_out.scatter(1, own[:, None], False).repeat(2, 2), float("-inf"))
        return functional.cross_entropy(logits, positive)

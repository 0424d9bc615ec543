"""NT-Xent, the contrastive loss of SimCLR (SSPS paper, Eq. 1; CLAR, Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def ntxent(a: Tensor, b: Tensor, *, keys_a: Tensor, keys_b: Tensor, offset: int, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy, mean over this rank's 2B anchors; a scalar >= 0, float32.

    ``z`` are the ``2n`` L2-normalised keys (``keys_a``, then ``keys_b``, ``n = W*B``). ``p(i)`` is the other view of
    anchor ``i``::

        l_i = -log( exp(z_i . z_p(i) / t) / sum over k != i of exp(z_i . z_k / t) )

    ``a, b [B, D]`` are the two views of this rank (any norm), ``keys_a, keys_b [W*B, D]`` those of all ranks in rank
    order, gathered with gradient. ``offset`` is the row of this rank's first utterance in the keys (rank * B). With one
    rank the keys are ``a, b`` themselves. Every row of both views is an anchor. The mean over ranks is the loss of the
    global batch. The arithmetic is float32 (float64 for float64 inputs), even under autocast: at t = 0.03 logits reach
    33, where neighbouring bfloat16 numbers differ by 0.25. Raises `ValueError` if the shapes do not fit each other or
    the temperature is not positive.
    """
    rows, total = a.shape[0], keys_a.shape[0]
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if a.shape != b.shape or keys_a.shape != keys_b.shape or not 0 <= offset <= total - rows:
        raise ValueError(
            f"a {tuple(a.shape)}, b {tuple(b.shape)} are not rows {offset}..{offset + rows} of keys "
            f"{tuple(keys_a.shape)}, {tuple(keys_b.shape)}"
        )
    with torch.autocast(device_type=a.device.type, enabled=False):
        anchors = _unit(torch.cat([a, b]))
        keys = _unit(torch.cat([keys_a, keys_b]))
        own = torch.arange(offset, offset + rows, device=a.device)
        itself = torch.cat([own, own + total])
        positive = torch.cat([own + total, own])
        logits = (anchors @ keys.T / temperature).scatter(1, itself[:, None], float("-inf"))
        return functional.cross_entropy(logits, positive)


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)

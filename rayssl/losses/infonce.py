"""InfoNCE with a queue of negatives, the contrastive loss of MoCo (He et al., CVPR 2020, Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import unit


def infonce(queries: Tensor, keys: Tensor, queue: Tensor, *, filled: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's own key among this key and the queue; a scalar >= 0, float32.

    All rows are L2-normalised here. ``k_i`` is the key of query ``q_i``; ``n_j`` are the filled rows of the queue::

        l_i = -log( exp(q_i . k_i / t) / (exp(q_i . k_i / t) + sum over j of exp(q_i . n_j / t)) )

    The loss is the mean over the B rows of this rank. ``queries, keys [B, D]`` and ``queue [Q, D]`` may have any norm.
    ``filled`` bool says which rows of the queue count, ``[Q]`` for all queries or ``[B, Q]`` for each; if none is
    filled, the loss is zero. Keys of other utterances of the batch are not negatives, as published. Gradient flows to
    all inputs that require it, so the caller must detach the keys. No rank needs the rows of another rank. The mean
    over ranks is the loss of the global batch if all ranks have the same queue. The arithmetic is float32 (float64 for
    float64 inputs), even under autocast. Raises `ValueError` if the shapes do not fit each other, ``filled`` is not
    bool, or the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if queries.shape != keys.shape or queue.shape[1:] != keys.shape[1:]:
        raise ValueError(
            f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)} and queue {tuple(queue.shape)} do not fit"
        )
    allowed = ((len(queue),), (len(queries), len(queue)))
    if tuple(filled.shape) not in allowed or filled.dtype != torch.bool:
        raise ValueError(f"filled must be bool {allowed[0]} or {allowed[1]}, got {filled.dtype} {tuple(filled.shape)}")
    with torch.autocast(device_type=queries.device.type, enabled=False):
        q, k, negatives = unit(queries), unit(keys), unit(queue)
        own = (q * k).sum(dim=1, keepdim=True)
        others = (q @ negatives.T).masked_fill(~filled, float("-inf"))
        logits = torch.cat([own, others], dim=1) / temperature
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

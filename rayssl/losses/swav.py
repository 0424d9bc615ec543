"""Swapped prediction of cluster codes, the loss of SwAV (Caron et al., NeurIPS 2020, Eq. 1 to 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from rayssl.losses.rows import check_views, precise


def swav(
    a: Tensor,
    b: Tensor,
    *,
    keys_a: Tensor,
    keys_b: Tensor,
    offset: int,
    temperature: float,
    epsilon: float,
    iterations: int,
    counted: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each view's prediction against the other view's code, mean over B rows; a scalar, float32.

    ``q`` are the codes that `sinkhorn` makes from the keys::

        l_i = -1/2 sum over k of ( q_b[i, k] log softmax(a_i / t)[k] + q_a[i, k] log softmax(b_i / t)[k] )

    ``a, b [B, K]`` are the scores of this rank's two views: products of L2-normalised embeddings and prototypes.
    ``keys_a, keys_b [N, K]`` are the scores from which the codes are made: those of all ranks in rank order and then,
    if there is a queue, those of past embeddings. ``offset`` is the row of this rank's first utterance in them
    (rank * B). With one rank and no queue the keys are ``a, b`` themselves. Every rank has all keys, so the codes are
    exactly those of the global batch, and the mean over ranks is its loss. No gradient flows through codes. For
    ``counted [N]`` see `sinkhorn`. The arithmetic is float32 (float64 for float64 inputs), even under autocast. Raises
    `ValueError` if the shapes do not fit each other, or if temperature, epsilon or iterations are not positive.
    """
    rows = len(a)
    check_views(a, b, keys_a, keys_b, offset=offset, temperature=temperature)
    own = slice(offset, offset + rows)
    code_a, code_b = (
        sinkhorn(keys, epsilon=epsilon, iterations=iterations, counted=counted)[own] for keys in (keys_a, keys_b)
    )
    with torch.autocast(device_type=a.device.type, enabled=False):
        predicted_a, predicted_b = ((precise(x) / temperature).log_softmax(dim=1) for x in (a, b))
        return -(code_b * predicted_a + code_a * predicted_b).sum(dim=1).mean() / 2


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int, counted: Tensor | None = None) -> Tensor:
    """Soft codes ``[N, K]`` for ``scores [N, K]``. Each row sums to 1, and all prototypes are used about equally.

    Sinkhorn-Knopp (SwAV, Eq. 3 to 5), starting from ``exp(scores / epsilon)``. Each iteration first scales the columns,
    so that all prototypes have the same total, and then the rows. At the end the sums of rows are exact, and those of
    prototypes almost equal. The arithmetic is in logarithms, so that a small ``epsilon`` does not overflow. Only rows
    with ``counted [N]`` (bool, default all) take part in the totals of the prototypes. There is no gradient. Raises
    `ValueError` if ``epsilon`` or ``iterations`` is not positive, or if ``counted`` is not one bool for each row.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon and iterations must be positive, got {epsilon} and {iterations}")
    if counted is not None and (counted.shape != scores.shape[:1] or counted.dtype != torch.bool):
        raise ValueError(f"counted must be bool {tuple(scores.shape[:1])}, got {counted.dtype} {tuple(counted.shape)}")
    with torch.autocast(device_type=scores.device.type, enabled=False):
        log = precise(scores) / epsilon
        for _ in range(iterations):
            taking_part = log if counted is None else log.masked_fill(~counted[:, None], float("-inf"))
            log = log - taking_part.logsumexp(dim=0, keepdim=True)
            log = log - log.logsumexp(dim=1, keepdim=True)
        return log.exp()

"""The effective rank of embeddings: a figure of their quality that needs no labels (RankMe)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-7


def effective_rank(embeddings: NDArray[np.float32]) -> float:
    """How many dimensions embeddings ``[n, D]`` use, between 1 and min(n, D).

    RankMe (Garrido, Balestriero, Najman and LeCun, ICML 2023), equation 1: ``exp(-sum_k p_k log p_k)`` with
    ``p_k = s_k / sum_j s_j + 1e-7`` and the singular values ``s_k`` of the embeddings. They are neither centred nor
    normalised. The value grows with n while n is below a few times D, so compare runs with the same n.

    Raises `ValueError` if there are no rows, or a value is not finite, or all are zero.
    """
    rows = np.asarray(embeddings, np.float64)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(f"effective rank: expected finite embeddings [n, D], got shape {list(rows.shape)}")
    singular = np.linalg.svd(rows, compute_uv=False)
    total = singular.sum()
    if total <= 0:
        raise ValueError("effective rank: all embeddings are zero")
    p = singular / total + _TINY
    return float(np.exp(-np.sum(p * np.log(p))))

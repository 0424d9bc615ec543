"""Sequential consistency: two views of a night agree on which epochs are alike (SleepFormer, ICLR workshop 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rayssl.losses.rows import unit


def sequential_consistency(
    a: Tensor,
    b: Tensor,
    *,
    w_min: float = 0.5,
    distance: Literal["l2", "l1"] = "l2",
    detach_b: bool = False,
    real: Tensor | None = None,
) -> Tensor:
    """Weighted difference of two views' similarity matrices, mean over this rank's S sequences; a scalar >= 0, float32.

    ``z^v_i`` is the L2-normalised epoch i of view v, ``C^v_ij = z^v_i . z^v_j``::

        L = 1/(S N^2) sum over s, i, j of W_ij |C^a_ij - C^b_ij|^q,    W_ij = 1 - (1 - w_min) |i - j| / (N - 1)

    ``q`` is 2 (``l2``) or 1 (``l1``). The paper's figure gives W and the matrices; that the difference is squared and
    the mean taken is our reading. ``a, b [S, N, D]`` are two views of the same sequences, of any norm. ``w_min``
    (0..1): the weight of the first epoch with the last. ``detach_b``: view b is a target without gradient. ``real [S,
    N]`` bool: epochs that are not real (the padding at the ends of a night) are left out, and N^2 is the number of real
    pairs of the sequence; a sequence without real epochs counts as 0.

    If all rows are equal, the loss is 0: it needs a supervised loss beside it. It does not change if a view is rotated.
    No rank needs the rows of another rank: if all have S sequences, the mean over ranks is the loss of the global
    batch. The arithmetic is float32 (float64 for float64 inputs), even under autocast. Raises `ValueError` if the
    shapes do not fit or a setting is impossible.
    """
    if not 0 <= w_min <= 1:
        raise ValueError(f"w_min must be in 0..1, got {w_min}")
    if distance not in ("l2", "l1"):
        raise ValueError(f"distance must be l2 or l1, got {distance}")
    if a.dim() != 3 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must be the same [S, N, D], and not empty")
    if real is not None and (real.shape != a.shape[:2] or real.dtype != torch.bool):
        raise ValueError(f"real must be bool {tuple(a.shape[:2])}, got {real.dtype} {tuple(real.shape)}")
    with torch.autocast(device_type=a.device.type, enabled=False):
        difference = _similarity(a) - _similarity(b.detach() if detach_b else b)
        weights = pair_weights(a.shape[1], w_min=w_min, device=a.device).to(difference.dtype)
        terms = weights * (difference.square() if distance == "l2" else difference.abs())
        if real is None:
            return terms.mean()
        pairs = real[:, :, None] & real[:, None, :]
        return (terms.masked_fill(~pairs, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)).mean()


def pair_weights(count: int, *, w_min: float, device: torch.device | str = "cpu") -> Tensor:
    """``W [count, count]``, float64: 1 on the diagonal, falling evenly to ``w_min`` for the first and the last epoch.

    For a single epoch it is 1.
    """
    places = torch.arange(count, dtype=torch.float64, device=device)
    return 1 - (1 - w_min) * (places[:, None] - places).abs() / max(count - 1, 1)


def _similarity(x: Tensor) -> Tensor:
    """``[S, N, N]``"""
    z = unit(x)
    return z @ z.transpose(1, 2)

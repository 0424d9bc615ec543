"""Shared by losses that compare rows of features: rows of length 1, and the rows of a rank among those of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def precise(x: Tensor) -> Tensor:
    """``x`` in float32; in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """``x [..., D]`` with rows of length 1, in float32 (float64 for float64 inputs)."""
    return functional.normalize(precise(x), dim=-1)


def check_views(a: Tensor, b: Tensor, keys_a: Tensor, keys_b: Tensor, *, offset: int, temperature: float) -> None:
    """Raises `ValueError` unless ``a, b [B, D]`` can be the rows from ``offset`` on of ``keys_a, keys_b [N, D]``.

    It also raises if the temperature is not positive.
    """
    rows, total = len(a), len(keys_a)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if a.shape != b.shape or keys_a.shape != keys_b.shape or not 0 <= offset <= total - rows:
        raise ValueError(
            f"a {tuple(a.shape)}, b {tuple(b.shape)} are not rows {offset}..{offset + rows} of keys "
            f"{tuple(keys_a.shape)}, {tuple(keys_b.shape)}"
        )

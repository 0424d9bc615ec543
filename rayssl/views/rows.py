"""Shared by distortion and augmentation: draws for each row, the level of a row, and scaling into [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from rayssl.random.draws_torch import uniform_torch


def level(wave: Tensor) -> Tensor:
    """The square root of each row's energy, ``[B, 1]``."""
    norm: Tensor = torch.linalg.vector_norm(wave, dim=1, keepdim=True)
    return norm


def in_range(wave: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """``gain * wave`` as a new ``[B, T]``. A row whose peak would exceed 1 is divided by its peak. ``gain [B, 1]``."""
    peak = wave.abs().amax(dim=1, keepdim=True) * gain
    scaled = wave * (gain / peak.clamp_min(1.0))
    return scaled.clamp(-1.0, 1.0)


def chosen(keys: Tensor, stream: int, p: float) -> Tensor:
    """True with probability ``p``, bool ``[B, 1]``."""
    return (uniform_torch(keys, stream) < p)[:, None]


def index(keys: Tensor, stream: int, count: int) -> Tensor:
    """Uniform int64 ``[B]`` in 0..count-1."""
    return (uniform_torch(keys, stream) * count).long().clamp_max(count - 1)


def between(keys: Tensor, stream: int, bounds: tuple[float, float]) -> Tensor:
    """Uniform float32 ``[B, 1]`` between ``bounds``."""
    low, high = bounds
    return (low + (high - low) * uniform_torch(keys, stream))[:, None]


def gain(keys: Tensor, streams: tuple[int, int], p: float, db: tuple[float, float]) -> Tensor:
    """Factors ``[B, 1]``: with probability ``p`` drawn uniformly from ``db`` in dB, else 1.

    The first of ``streams`` draws whether, the second draws the level.
    """
    drawn = 10.0 ** (between(keys, streams[1], db) / 20.0)
    return torch.where(chosen(keys, streams[0], p), drawn, 1.0)

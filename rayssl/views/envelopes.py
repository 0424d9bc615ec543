"""Rolls, fades and masks over time. Every row of a batch has its own shift or length."""

from __future__ import annotations

import torch
from torch import Tensor


def rolled(wave: Tensor, shift: Tensor) -> Tensor:
    """``wave [B, T]`` moved right by ``shift [B]`` int64 samples; samples that leave at the end enter at the start."""
    samples = wave.shape[1]
    # A view of all windows: indexing it copies whole rows, which is several times faster than gathering single samples
    windows = torch.cat((wave, wave), dim=1).unfold(1, samples, 1)
    return windows[torch.arange(len(wave), device=wave.device), torch.remainder(-shift, samples)]


def fade_gains(length: Tensor, shape: Tensor, samples: int) -> Tensor:
    """Gains ``[B, samples]`` in (0, 1] that rise over the first ``length [B]`` int64 samples and then stay 1.

    x rises from 0, one sample before the row, to 1. ``shape [B]`` is 0 for a linear fade, x; 1 for a logarithmic one,
    log10(1 + 9 x); 2 for an exponential one, (10^x - 1) / 9. No gain is 0, so that even a very short row keeps sound.
    """
    time = torch.arange(1, samples + 1, device=length.device)
    x = (time / (length[:, None] + 1)).clamp_max(1.0)
    shape = shape[:, None]
    curved = torch.where(shape == 1, torch.log10(1.0 + 9.0 * x), (10.0**x - 1.0) / 9.0)
    # after the rise the gain is exactly 1; the formulas would give 1 with a rounding error
    return torch.where((shape == 0) | (x >= 1.0), x, curved)


def masked(wave: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """``wave [B, T]`` with zeros in the ``width [B]`` samples that begin at ``start [B]``, both int64."""
    time = torch.arange(wave.shape[1], device=wave.device)
    inside = (time >= start[:, None]) & (time < (start + width)[:, None])
    return wave.masked_fill(inside, 0.0)

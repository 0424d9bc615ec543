"""Where the sound of a row lies: rolls, fades and masks of a length of its own for each row of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def rolled(wave: Tensor, shift: Tensor) -> Tensor:
    """``wave [B, T]`` moved to the right by ``shift [B]`` int64 samples; what leaves at the end enters at the start."""
    samples = wave.shape[1]
    # A view of every window: indexing it copies whole rows, several times faster than gathering sample by sample
    windows = torch.cat((wave, wave), dim=1).unfold(1, samples, 1)
    return windows[torch.arange(len(wave), device=wave.device), torch.remainder(-shift, samples)]


def fade_gains(length: Tensor, shape: Tensor, samples: int) -> Tensor:
    """Gains ``[B, samples]`` in (0, 1] that rise over the first ``length [B]`` int64 samples and are 1 from there on.

    With x from 0 (one sample before the row) to 1: ``shape [B]`` 0 is linear, x; 1 logarithmic, log10(1 + 9 x); 2
    exponential, (10^x - 1) / 9. No gain is 0, so that a fade silences no row, however short.
    """
    time = torch.arange(1, samples + 1, device=length.device)
    x = (time / (length[:, None] + 1)).clamp_max(1.0)
    shape = shape[:, None]
    curved = torch.where(shape == 1, torch.log10(1.0 + 9.0 * x), (10.0**x - 1.0) / 9.0)
    # exactly 1 after the rise, which the formulas miss by a rounding
    return torch.where((shape == 0) | (x >= 1.0), x, curved)


def masked(wave: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """``wave [B, T]`` with zeros in ``width [B]`` samples from ``start [B]`` on, both int64."""
    time = torch.arange(wave.shape[1], device=wave.device)
    inside = (time >= start[:, None]) & (time < (start + width)[:, None])
    return wave.masked_fill(inside, 0.0)

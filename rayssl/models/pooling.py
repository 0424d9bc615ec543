"""Max pooling that can be exported for any length.

PyTorch's own decides by whether the length divides by the stride how long its result is. `torch.export` takes down
that answer for the length of its example, and the exported file would then refuse every other kind of length. What is
traced in its place has the same values, and takes a copy more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pool_time(x: Tensor, size: int) -> Tensor:
    """The largest of every ``size`` steps of ``x [B, C, T]``, at least 0: ``[B, C, ceil(T / size)]``."""
    if not torch.compiler.is_exporting():
        return F.max_pool1d(x, size, ceil_mode=True)
    return F.pad(x, (0, size - 1)).unfold(2, size, size).amax(3)  # zeros change no maximum of what is at least 0


def pool_plane(x: Tensor) -> Tensor:
    """The largest of 3 x 3 around every other point of ``x [B, C, H, W]``, at least 0: half of H and W, rounded up."""
    if not torch.compiler.is_exporting():
        return F.max_pool2d(x, 3, stride=2, padding=1)
    return F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))

"""Max pooling that can be exported for inputs of any length.

In PyTorch's pooling, the length of the result depends on whether the length of the input is divisible by the stride.
`torch.export` stores the answer for the length of its example, and the exported file would refuse other lengths. So
another formula is used for the export. It has the same values, but needs one more copy.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rayssl.models.exporting import exporting


def pool_time(x: Tensor, size: int) -> Tensor:
    """The maximum of every ``size`` steps of ``x [B, C, T]``: ``[B, C, ceil(T / size)]``. ``x`` must be >= 0.

    It also takes ``[B, C, 1, T]``.
    """
    if x.dim() == 4:
        return F.max_pool2d(x, (1, size), ceil_mode=True)
    if not exporting():
        return F.max_pool1d(x, size, ceil_mode=True)
    return F.pad(x, (0, size - 1)).unfold(2, size, size).amax(3)  # added zeros do not change a maximum of values >= 0


def pool_plane(x: Tensor) -> Tensor:
    """The maximum of 3 x 3 around every second point of ``x [B, C, H, W]``: half of H and W, rounded up.

    ``x`` must be >= 0.
    """
    if not exporting():
        return F.max_pool2d(x, 3, stride=2, padding=1)
    return F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))

"""Many tensors, each multiplied by a factor of its own that only the device knows, in a few launches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def scale_each_(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiplies each of n ``tensors`` in place by its number in ``factors [n]``, without a wait of the host.

    Given tensors of other sizes, `torch._foreach_mul_` falls back to one launch for each of them on a GPU. So there the
    factors are repeated to the sizes of the tensors first.
    """
    if tensors[0].device.type == "cpu":
        torch._foreach_mul_(list(tensors), list(factors.unbind()))
    else:
        scale_repeated_(tensors, factors)


def scale_repeated_(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """`scale_each_` as it is on a GPU. Each tensor is dense in memory, in any order of its axes."""
    sizes = tuple(tensor.numel() for tensor in tensors)
    repeated = factors.repeat_interleave(_counts(sizes, factors.device), output_size=sum(sizes)).to(tensors[0].dtype)
    flat = [tensor.as_strided((size,), (1,)) for tensor, size in zip(tensors, sizes, strict=True)]
    torch._foreach_mul_(flat, list(repeated.split(sizes)))


@lru_cache(maxsize=32)
def _counts(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """``sizes`` on the ``device``, int64 ``[n]``: once, since the copy waits for it."""
    return torch.tensor(sizes, device=device)

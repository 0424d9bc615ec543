"""The frames that a convolution over time sees, side by side, where the channels are last in memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def neighbours(x: Tensor, kernel: int, dilation: int, mode: str = "reflect") -> Tensor:
    """For each frame the ``kernel`` frames around it, ``dilation`` apart: ``[B, T, I]`` to ``[B, T, kernel * I]``.

    ``kernel`` is odd. Beyond the ends of the time axis are its reflection, or zeros with the ``mode`` "constant".
    """
    if torch.compiler.is_compiling():
        return _sliced(x, kernel, dilation, mode)
    seen: Tensor = _Neighbours.apply(x, kernel, dilation, mode)  # type: ignore[no-untyped-call]
    return seen


def _sliced(x: Tensor, kernel: int, dilation: int, mode: str) -> Tensor:
    """`neighbours` of slices alone, which a compiler fuses with what is before and behind them."""
    frames, reach = x.shape[1], dilation * (kernel - 1) // 2
    if reach and mode == "constant":
        x = F.pad(x, (0, 0, reach, reach))
    elif reach:
        # slices, and not an index: their gradients are sums in a fixed order, and a compiler can fuse them
        x = torch.cat((x[:, 1 : reach + 1].flip(1), x, x[:, -reach - 1 : -1].flip(1)), dim=1)
    return torch.cat([x[:, place * dilation : place * dilation + frames] for place in range(kernel)], dim=2)


class _Neighbours(torch.autograd.Function):
    """`neighbours` in one launch, and two or three for each other frame backward: autograd takes five times as many.

    The sums of the gradient have a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, dilation: int, mode: str) -> Tensor:
        frames, reach = x.shape[1], dilation * (kernel - 1) // 2
        if mode != "constant" and reach >= frames:
            raise ValueError(f"{frames} frames cannot be reflected by {reach}")
        ctx.settings = kernel, dilation, mode
        if mode == "constant":
            x = F.pad(x, (0, 0, reach, reach))
        seen = x.index_select(1, _places(frames, kernel, dilation, mode, x.device))
        return seen.view(len(x), frames, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        kernel, dilation, mode = ctx.settings
        frames = gradient.shape[1]
        by_place = gradient.unflatten(2, (kernel, -1))
        total = by_place[:, :, kernel // 2].clone(memory_format=torch.contiguous_format)
        for place in range(kernel):
            offset = (place - kernel // 2) * dilation
            own, beyond = by_place[:, :, place], min(abs(offset), frames)
            if offset < 0:
                total[:, : frames - beyond].add_(own[:, beyond:])
                if mode != "constant":
                    total[:, 1 : beyond + 1].add_(own[:, :beyond].flip(1))
            elif offset > 0:
                total[:, beyond:].add_(own[:, : frames - beyond])
                if mode != "constant":
                    total[:, frames - 1 - beyond : frames - 1].add_(own[:, frames - beyond :].flip(1))
        return total, None, None, None


@lru_cache(maxsize=64)
def _places(frames: int, kernel: int, dilation: int, mode: str, device: torch.device) -> Tensor:
    """Which frames are side by side: int64 ``[frames * kernel]``, of the padded ones if ``mode`` is "constant"."""
    reach = dilation * (kernel - 1) // 2
    places = torch.arange(frames, device=device)[:, None] + torch.arange(kernel, device=device) * dilation
    if mode != "constant":
        places = (places - reach).abs()
        places = torch.where(places < frames, places, 2 * (frames - 1) - places)
    return places.flatten()  # made on the device: with each new length, a copy from the host would wait

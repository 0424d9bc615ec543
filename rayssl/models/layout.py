"""Channels last in memory: the layout of features and of the weights of convolutions on a GPU.

`rayssl.models.base.Backbone.lays_channels_last` decides where it is used. Parameters keep their names and shapes, so a
checkpoint of either layout fits the other one.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)


class TimeConv(nn.Conv1d):
    """`torch.nn.Conv1d` that also takes ``[B, C, 1, T]``, and keeps the channels last there.

    torch has no such layout in one dimension.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, T]`` to ``[B, C', T']``, or ``[B, C, 1, T]`` to ``[B, C', 1, T']``."""
        if input.dim() != 4:
            return super().forward(input)
        assert isinstance(self.padding, tuple)
        return F.conv2d(
            input,
            self.weight[:, :, None],
            self.bias,
            (1, *self.stride),
            (0, *self.padding),
            (1, *self.dilation),
            self.groups,
        )


def as_plane(features: Tensor, channels_last: bool) -> Tensor:
    """Features ``[B, F, T]`` as one channel ``[B, 1, F, T]``; ``[B, C, F, T]`` stays. With channels last if asked."""
    if features.dim() == 3:
        # with one channel the strides alone say which layout a convolution should have
        return features.contiguous()[..., None].permute(0, 3, 1, 2) if channels_last else features[:, None]
    return features.contiguous(memory_format=torch.channels_last) if channels_last else features


def placed(module: Module, device: torch.device) -> Module:
    """``module`` on ``device``. On a GPU, the kernels of its convolutions have their channels last in memory.

    These are the 2-d ones and those of `TimeConv`.

    Otherwise each pass would convert them. The gradient of a kernel has its layout. Kernels with one input channel or
    one position have only one layout. On a CPU kernels have torch's usual layout, also of a module that was on a GPU.
    """
    module.to(device)
    lay_kernels(module, torch.contiguous_format if device.type == "cpu" else torch.channels_last)
    return module


def lay_kernels(module: nn.Module, layout: torch.memory_format = torch.channels_last) -> None:
    """Gives the kernels of convolutions a ``layout`` in memory, see `placed`."""
    for part in module.modules():
        if not isinstance(part, nn.Conv2d | TimeConv) or part.weight.shape[1] == 1 or part.weight[0, 0].numel() == 1:
            continue
        kernel = part.weight.data
        plane = kernel if kernel.dim() == 4 else kernel.unsqueeze(2)
        laid = plane.contiguous(memory_format=layout)
        part.weight.data = laid if kernel.dim() == 4 else laid.squeeze(2)

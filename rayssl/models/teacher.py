"""A slowly moving average of a trained module: the teacher of DINO, the key encoder of MoCo.

The average is an ordinary submodule of the method, so that its weights are in the checkpoint. The method moves it in
``after_step``. Because the parameters are the same on all ranks, so is the average.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """A copy of ``module`` with the same values, whose parameters have no gradient. `average` moves it."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, momentum: float, *, statistics: bool = False) -> None:
    """Moves ``teacher`` towards ``student``, in place: ``t <- momentum * t + (1 - momentum) * s``.

    This moves every parameter and every floating-point buffer. The running statistics of batch normalisation are moved
    only with ``statistics``. A teacher in training mode does not need that: it uses the statistics of each batch (of
    all ranks, if they are synchronised), and its running statistics follow its own weights and its own views. Those of
    the student belong to other weights and, if the student sees shorter segments, to other inputs. A teacher that is
    always in eval mode never updates its own statistics, so it needs ``statistics=True``.

    Raises `ValueError` if ``momentum`` is not in [0, 1], or if teacher and student have different parameters.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    followed, leading = _averaged(teacher, statistics), _averaged(student, statistics)
    if followed.keys() != leading.keys():
        raise ValueError(f"teacher and student differ in {sorted(followed.keys() ^ leading.keys())}")
    if followed:
        # one call for all tensors: on a GPU a few launches, and not one for each tensor
        towards = [leading[name].to(value.dtype) for name, value in followed.items()]
        torch._foreach_lerp_(list(followed.values()), towards, 1 - momentum)


def momentum_at(progress: float, start: float, end: float = 1.0) -> float:
    """The momentum at ``progress`` in [0, 1] of the training. It rises from ``start`` to ``end`` as half a cosine."""
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2


def warmed_momentum(step: int, momentum: float) -> float:
    """The momentum of DASO (Oh et al., CVPR 2022): ``min(1 - 1/(step + 1), momentum)``, with ``step`` from 0.

    While it rises, the average is the arithmetic mean of all students so far. At step 0 the average becomes equal to
    the student, whatever the teacher's initial values are.
    """
    return min(1 - 1 / (step + 1), momentum)


def _averaged(module: nn.Module, statistics: bool) -> dict[str, torch.Tensor]:
    """By name: the parameters and the floating-point buffers; those of batch normalisation only with ``statistics``."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters())
    for prefix, part in module.named_modules():
        if statistics or not isinstance(part, nn.modules.batchnorm._NormBase):
            own = part.named_buffers(prefix, recurse=False)
            found |= {name: buffer for name, buffer in own if buffer.is_floating_point()}
    return found

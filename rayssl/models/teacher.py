"""A slowly moving average of a trained module: DINO's teacher, MoCo's key encoder.

The average is a module like any other: registered by the method that has it, so that its weights are in the
checkpoint, and moved in the method's ``after_step``, from parameters that are the same on all ranks.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """A copy that starts from ``module``'s values and whose parameters take no gradient: what `average` moves."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, momentum: float, *, statistics: bool = False) -> None:
    """Moves every parameter and floating buffer of ``teacher``, in place: ``t <- momentum * t + (1 - momentum) * s``.

    Not the running statistics of batch normalisation, unless ``statistics``, for an average that runs in eval mode and
    has no other way to any: the teacher keeps its own. It runs in training mode, on the
    statistics of the very batch (over all ranks where they are synchronised), and so follows with its running ones
    what its own weights make of its own views. An average of the student's would belong to other weights and, where
    the student sees shorter crops, to other inputs. ``momentum`` in [0, 1], else `ValueError`; also for a student that
    is built otherwise than the teacher.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    followed, leading = _averaged(teacher, statistics), _averaged(student, statistics)
    if followed.keys() != leading.keys():
        raise ValueError(f"teacher and student differ in {sorted(followed.keys() ^ leading.keys())}")
    for name, value in followed.items():
        value.lerp_(leading[name].to(value.dtype), 1 - momentum)


def momentum_at(progress: float, start: float, end: float = 1.0) -> float:
    """The momentum after ``progress`` in [0, 1] of the training: from ``start`` to ``end`` along half a cosine."""
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2


def warmed_momentum(step: int, momentum: float) -> float:
    """``min(1 - 1/(step + 1), momentum)``, with ``step`` counted from 0: DASO's momentum (Oh et al., CVPR 2022).

    While it rises the average is the plain mean of the students so far; at step 0 it is the student, whatever the
    teacher started from.
    """
    return min(1 - 1 / (step + 1), momentum)


def _averaged(module: nn.Module, statistics: bool) -> dict[str, torch.Tensor]:
    """By name: the parameters, and the floating buffers, of batch normalisations where ``statistics`` says so."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters())
    for prefix, part in module.named_modules():
        if statistics or not isinstance(part, nn.modules.batchnorm._NormBase):
            own = part.named_buffers(prefix, recurse=False)
            found |= {name: buffer for name, buffer in own if buffer.is_floating_point()}
    return found

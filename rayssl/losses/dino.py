"""DINO's loss: from each crop, the student predicts the teacher's output for other crops (SSPS paper, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import precise


def dino(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy of the student's distributions against the teacher's, over pairs of different crops; a scalar.

    ``students`` are the student's logits for every crop, ``teachers`` the teacher's logits for the first
    ``len(teachers)`` crops, ``[B, K]`` each. ``centre [K]`` is the running mean of the teacher's logits. With ``P``
    pairs::

        p_g = softmax((teachers[g] - centre) / teacher_temperature),    q_v = softmax(students[v] / student_temperature)
        loss = -1/(P B) sum over g, v != g and rows of p_g . log q_v

    No gradient flows to the teacher. The loss is the mean over the rows of this rank; the mean over ranks is the loss
    of the global batch. The arithmetic is float32 (float64 for float64 inputs), even under autocast. Raises
    `ValueError` if the shapes do not fit, a temperature is not positive, or there is no pair.
    """
    _check(students, teachers, centre, student_temperature, teacher_temperature)
    pairs = len(teachers) * (len(students) - 1)
    with torch.autocast(device_type=centre.device.type, enabled=False):
        targets = [distribution(teacher, centre, teacher_temperature) for teacher in teachers]
        losses = []
        for number, student in enumerate(students):
            others = [target for crop, target in enumerate(targets) if crop != number]
            if others:  # cross-entropy is linear in its target, so one call serves all pairs of this crop
                logits = precise(student) / student_temperature
                losses.append(functional.cross_entropy(logits, torch.stack(others).sum(0)))
        return torch.stack(losses).sum() / pairs


@torch.no_grad()
def distribution(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's ``softmax((logits - centre) / temperature)``, ``[B, K]``, without gradient, float32 at least."""
    return functional.softmax((precise(logits) - centre) / temperature, dim=1)


@torch.no_grad()
def entropy(teachers: Sequence[Tensor], *, centre: Tensor, temperature: float) -> Tensor:
    """The mean entropy of the teacher's distributions, in nats; a scalar in 0..log K.

    Near 0 each utterance has a single prototype, perhaps the same for all. At ``log K`` the distributions are uniform
    and contain no information. The loss is this entropy plus the divergence of the student from the teacher.
    """
    own = [distribution(teacher, centre, temperature) for teacher in teachers]
    return torch.stack([-torch.special.xlogy(p, p).sum(1).mean() for p in own]).mean()


@torch.no_grad()
def mean_logits(teachers: Sequence[Tensor]) -> Tensor:
    """The mean of this rank's teacher logits over crops and rows, ``[K]``. Its mean over ranks is the global one."""
    return torch.stack([precise(teacher).mean(0) for teacher in teachers]).mean(0)


@torch.no_grad()
def moved_centre(centre: Tensor, mean: Tensor, *, momentum: float) -> Tensor:
    """The new centre ``[K]``, ``m * centre + (1 - m) * mean``, if the teacher's logits of a batch have ``mean [K]``."""
    return centre * momentum + mean.to(centre.dtype) * (1 - momentum)


def _check(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> None:
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 1 <= len(teachers) <= len(students) or len(students) < 2:
        raise ValueError(f"{len(students)} student and {len(teachers)} teacher crops make no pair of different crops")
    shapes = {tuple(logits.shape) for logits in (*students, *teachers)}
    if len(shapes) > 1 or centre.shape != students[0].shape[1:]:
        raise ValueError(f"logits {sorted(shapes)} and centre {tuple(centre.shape)} do not fit together")

"""DINO's loss: a student's crops predict what its averaged teacher makes of other crops (SSPS paper, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def dino(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy of the student's distributions against the teacher's, over pairs of different crops; a scalar.

    ``students`` are the student's logits of every crop, ``teachers`` the teacher's of the first ``len(teachers)`` of
    them, ``[B, K]`` each; ``centre [K]`` is what the teacher's logits were on average. With ``P`` pairs::

        p_g = softmax((teachers[g] - centre) / teacher_temperature),    q_v = softmax(students[v] / student_temperature)
        loss = -1/(P B) sum over g, v != g and rows of p_g . log q_v

    No gradient reaches the teacher. It is the mean over this rank's rows: its mean over ranks is the loss of the global
    batch. The arithmetic is float32 (float64 for float64 inputs) even under autocast. Raises `ValueError` for shapes
    that do not fit, for temperatures that are not positive, and where no pair is left.
    """
    _check(students, teachers, centre, student_temperature, teacher_temperature)
    pairs = len(teachers) * (len(students) - 1)
    with torch.autocast(device_type=centre.device.type, enabled=False):
        targets = [distribution(teacher, centre, teacher_temperature) for teacher in teachers]
        losses = []
        for number, student in enumerate(students):
            others = [target for crop, target in enumerate(targets) if crop != number]
            if others:  # cross-entropy is linear in its target: one for all pairs of this crop
                logits = _wide(student) / student_temperature
                losses.append(functional.cross_entropy(logits, torch.stack(others).sum(0)))
        return torch.stack(losses).sum() / pairs


@torch.no_grad()
def distribution(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's ``softmax((logits - centre) / temperature)``, ``[B, K]``, without gradient, float32 at least."""
    return functional.softmax((_wide(logits) - centre) / temperature, dim=1)


@torch.no_grad()
def entropy(teachers: Sequence[Tensor], *, centre: Tensor, temperature: float) -> Tensor:
    """Mean entropy of the teacher's distributions, in nats; a scalar.

    Near 0 every utterance has its own prototype or all share one, at ``log K`` none says anything. The loss exceeds it
    by the divergence of student from teacher.
    """
    own = [distribution(teacher, centre, temperature) for teacher in teachers]
    return torch.stack([-torch.special.xlogy(p, p).sum(1).mean() for p in own]).mean()


@torch.no_grad()
def mean_logits(teachers: Sequence[Tensor]) -> Tensor:
    """``[K]``: this rank's mean teacher logits over crops and rows; the mean over ranks is the global batch's."""
    return torch.stack([_wide(teacher).mean(0) for teacher in teachers]).mean(0)


@torch.no_grad()
def moved_centre(centre: Tensor, mean: Tensor, *, momentum: float) -> Tensor:
    """The centre ``[K]`` after a batch whose teacher logits had the ``mean [K]``: ``m * centre + (1 - m) * mean``."""
    return centre * momentum + mean.to(centre.dtype) * (1 - momentum)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


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

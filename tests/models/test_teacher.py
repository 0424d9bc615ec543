"""The averaged teacher: what moves, by how much, what stays its own, and the momentum over a training."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from rayssl.models.norm import BatchNorm1d
from rayssl.models.teacher import average, frozen_copy, momentum_at, warmed_momentum


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), BatchNorm1d(4), nn.Linear(4, 2))
    module.register_buffer("scale", torch.randn(2))
    module.register_buffer("count", torch.tensor(7 + seed))
    return module


def test_a_copy_is_frozen_equal_and_its_own() -> None:
    student = network(0)
    teacher = frozen_copy(student)
    torch.testing.assert_close(teacher.state_dict(), student.state_dict(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student[0].weight.add_(1)
    assert not torch.equal(teacher[0].weight, student[0].weight)


@pytest.mark.parametrize("momentum", [0.996, 0.5, 0.0, 1.0])
def test_average(momentum: float) -> None:
    teacher, student = frozen_copy(network(0)), network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    leading = {name: value.clone() for name, value in student.state_dict().items()}
    average(teacher, student, momentum)
    moved = {*dict(teacher.named_parameters()), "scale"}
    for name, value in teacher.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * leading[name] if name in moved else before[name]
        torch.testing.assert_close(value, expected, msg=name)
    torch.testing.assert_close(student.state_dict(), leading, rtol=0, atol=0)


def test_parameters_as_lightly() -> None:
    ours, student = frozen_copy(network(0)), network(1)
    theirs = frozen_copy(ours)
    for momentum in (0.9, 0.99, 0.999):
        average(ours, student, momentum)
        update_momentum(student, theirs, momentum)
        with torch.no_grad():
            student[2].weight.mul_(1.5)
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_where_both_agree_nothing_moves_not_even_by_rounding() -> None:
    student = network(0)
    teacher = frozen_copy(student)
    for momentum in (0.1, 0.7, 0.996):
        average(teacher, student, momentum)
    torch.testing.assert_close(teacher.state_dict(), student.state_dict(), rtol=0, atol=0)


def test_running_statistics_are_of_the_teachers_own_passes() -> None:
    student = network(0)
    teacher = frozen_copy(student)
    x = torch.randn(8, 3)
    teacher(x)
    own = teacher[1].running_mean.clone()
    student(x + 5)
    average(teacher, student, 0.0)
    assert torch.equal(teacher[1].running_mean, own) and not torch.equal(student[1].running_mean, own)
    assert torch.equal(teacher[1].weight, student[1].weight) and teacher[1].num_batches_tracked == 1


def test_a_students_precision_may_differ() -> None:
    teacher, student = frozen_copy(network(0)), network(1).double()
    before = teacher[0].weight.clone()
    average(teacher, student, 0.25)
    torch.testing.assert_close(teacher[0].weight, 0.25 * before + 0.75 * student[0].weight.float())


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1\.5"):
        average(network(0), network(0), 1.5)
    with pytest.raises(ValueError, match=r"teacher and student differ in \['3\.bias', '3\.weight', 'scale'\]"):
        average(network(0), nn.Sequential(*network(0)[:3], nn.Linear(2, 2)), 0.5)


def test_momentum_rises_to_one_along_half_a_cosine() -> None:
    assert momentum_at(0.0, 0.996) == pytest.approx(0.996) and momentum_at(1.0, 0.996) == 1.0
    assert momentum_at(0.5, 0.996) == pytest.approx(0.998)
    assert momentum_at(0.25, 0.0, 0.8) == pytest.approx(0.8 * (1 - math.cos(math.pi / 4)) / 2)
    path = [momentum_at(step / 40, 0.9) for step in range(41)]
    assert path == sorted(path)
    for step in range(41):  # lightly counts steps from 0 to one below their number
        assert path[step] == pytest.approx(cosine_schedule(step, 41, 0.9, 1.0))


def test_warmed_momentum_is_the_plain_mean_until_it_reaches_its_value() -> None:
    """DASO: min(1 - 1/(t+1), .999) with t from 0, so that .999 is reached at t = 999 and what came before forgotten."""
    assert [warmed_momentum(step, 0.999) for step in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert warmed_momentum(998, 0.999) < warmed_momentum(999, 0.999) == warmed_momentum(10**9, 0.999) == 0.999
    assert warmed_momentum(0, 0.0) == 0.0
    teacher, students = frozen_copy(network(0)), [network(seed) for seed in range(1, 5)]
    for step, student in enumerate(students):
        average(teacher, student, warmed_momentum(step, 0.999))
    mean = torch.stack([student[0].weight for student in students]).mean(0)
    torch.testing.assert_close(teacher[0].weight.data, mean.detach())


@pytest.mark.parametrize("statistics", [False, True])
def test_all_tensors_at_once_are_one_after_the_other(statistics: bool) -> None:
    """To the bit, also for a large one and one in another layout."""
    teacher, student = (nn.Sequential(network(seed), nn.Conv2d(3, 50, 7), nn.Linear(300, 200)) for seed in (0, 1))
    teacher[1].to(memory_format=torch.channels_last)
    expected = frozen_copy(teacher)
    average(teacher, student, 0.996, statistics=statistics)
    kept = () if statistics else ("0.1.running_mean", "0.1.running_var")
    with torch.no_grad():
        for (name, value), other in zip(expected.state_dict().items(), student.state_dict().values(), strict=True):
            if value.is_floating_point() and name not in kept:
                value.lerp_(other, 1 - 0.996)
    torch.testing.assert_close(teacher.state_dict(), expected.state_dict(), rtol=0, atol=0)

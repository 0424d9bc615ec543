"""DINO's loss and centre: Eq. 2 by brute force, lightly over several steps, closed forms, invariances, precision."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import DINOLoss
from torch import Tensor

from rayssl.losses.dino import dino, distribution, entropy, mean_logits, moved_centre

STUDENT, TEACHER = 0.1, 0.04


def _crops(count: int, rows: int = 5, prototypes: int = 7, seed: int = 0) -> list[Tensor]:
    """Logits as cosines are: within -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(count, rows, prototypes, generator=generator, dtype=torch.float64) * 2 - 1
    return [crop.clone().requires_grad_() for crop in logits]


def _problem(students: int = 6, teachers: int = 2, **sizes: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    taught, teaching = _crops(students, **sizes), _crops(teachers, seed=1, **sizes)
    return taught, teaching, _crops(1, seed=2, **sizes)[0][0].detach() / 5


def _loss(students: list[Tensor], teachers: list[Tensor], centre: Tensor) -> Tensor:
    return dino(students, teachers, centre=centre, student_temperature=STUDENT, teacher_temperature=TEACHER)


def _softmax(logits: list[Tensor]) -> list[Tensor]:
    exponentials = [value.exp() for value in logits]
    return [value / torch.stack(exponentials).sum() for value in exponentials]


def _transcription(students: list[Tensor], teachers: list[Tensor], centre: Tensor) -> Tensor:
    """-p . log q over each utterance's pairs of a teacher's crop and another crop of the student, in loops."""
    terms = []
    for i in range(len(students[0])):
        for g, teacher in enumerate(teachers):
            target = _softmax([(teacher[i, k].detach() - centre[k]) / TEACHER for k in range(len(centre))])
            for v, student in enumerate(students):
                guess = _softmax([student[i, k] / STUDENT for k in range(len(centre))])
                if v != g:
                    terms.append(-sum(target[k] * guess[k].log() for k in range(len(centre))))
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("students", "teachers"), [(6, 2), (2, 2), (3, 1), (3, 3)])
def test_transcription_in_value_and_gradient(students: int, teachers: int) -> None:
    taught, teaching, centre = _problem(students, teachers)
    ours, theirs = _loss(taught, teaching, centre), _transcription(taught, teaching, centre)
    torch.testing.assert_close(ours, theirs)
    # a student's first crop has no pair where it is the only teacher's
    own, expected = (torch.autograd.grad(value, taught, allow_unused=True) for value in (ours, theirs))
    assert [g is None for g in own] == [teachers == 1, *[False] * (students - 1)]
    torch.testing.assert_close([g for g in own if g is not None], [g for g in expected if g is not None])


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_lightly_in_value_gradient_and_centre_over_steps(momentum: float) -> None:
    """Four batches; lightly's teacher temperature is given, which switches its warm-up off."""
    theirs = DINOLoss(7, student_temp=STUDENT, center_momentum=momentum).double()
    centre = torch.zeros(7, dtype=torch.float64)
    for step in range(4):
        taught, teaching = _crops(6, seed=10 + step), _crops(2, seed=20 + step)
        detached = [teacher.detach() for teacher in teaching]
        expected = theirs(detached, taught, teacher_temp=TEACHER)
        ours = _loss(taught, teaching, centre)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, taught), torch.autograd.grad(expected, taught))
        centre = moved_centre(centre, mean_logits(teaching), momentum=momentum)
        torch.testing.assert_close(centre, theirs.center[0, 0])
    assert centre.abs().max() > 0.01


def test_equal_logits_cost_the_logarithm_of_the_prototypes() -> None:
    same = [torch.full((4, 9), 0.3, dtype=torch.float64)] * 3
    value = _loss(same, same[:2], torch.zeros(9, dtype=torch.float64))
    assert value.item() == pytest.approx(math.log(9), rel=1e-12)
    doubt = entropy(same[:2], centre=torch.zeros(9), temperature=TEACHER)
    assert doubt.item() == pytest.approx(math.log(9), rel=1e-6)


def test_certain_teacher() -> None:
    """One prototype at 1 and all others at -1 on both sides, and a teacher that has no doubt."""
    logits = torch.full((3, 8), -1.0, dtype=torch.float64)
    logits[:, 2] = 1.0
    expected = math.log(1 + 7 * math.exp(-2 / STUDENT))
    zero = torch.zeros(8, dtype=torch.float64)
    value = dino([logits] * 2, [logits] * 2, centre=zero, student_temperature=STUDENT, teacher_temperature=1e-3)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert entropy([logits], centre=zero, temperature=1e-3).item() == 0


def test_centre_takes_away_what_all_share() -> None:
    """A teacher that gives every utterance the centre itself says nothing."""
    centre = _problem()[2]
    torch.testing.assert_close(distribution(centre[None], centre, TEACHER), torch.full_like(centre, 1 / 7)[None])


def test_only_differences_between_prototypes_matter() -> None:
    taught, teaching, centre = _problem()
    value = _loss(taught, teaching, centre)
    moved = _loss([s + 3 for s in taught], [t - 2 for t in teaching], centre + 0.5)
    torch.testing.assert_close(moved, value)
    shift = torch.linspace(-1, 1, 7, dtype=torch.float64)  # of each prototype, in the teacher and its centre alike
    torch.testing.assert_close(_loss(taught, [t + shift for t in teaching], centre + shift), value)


def test_order_of_utterances_crops_and_prototypes_does_not_matter() -> None:
    taught, teaching, centre = _problem()
    value = _loss(taught, teaching, centre)
    rows, kinds = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 1, 5, 3, 4])
    torch.testing.assert_close(_loss([s[rows] for s in taught], [t[rows] for t in teaching], centre), value)
    torch.testing.assert_close(
        _loss([s[:, kinds] for s in taught], [t[:, kinds] for t in teaching], centre[kinds]), value
    )
    swapped = [taught[k] for k in (1, 0, 5, 3, 2, 4)]
    torch.testing.assert_close(_loss(swapped, teaching[::-1], centre), value)
    unpaired = [taught[k] for k in (1, 0, 2, 3, 4, 5)]  # the student's crops no longer where the teacher's are
    assert not torch.isclose(_loss(unpaired, teaching, centre), value)


def test_a_crop_is_not_compared_with_itself() -> None:
    taught, teaching, centre = _problem(2)
    before = torch.autograd.grad(_loss(taught, teaching, centre), taught)
    after = torch.autograd.grad(_loss(taught, [teaching[0], -teaching[1]], centre), taught)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


def test_no_gradient_reaches_the_teacher() -> None:
    taught, teaching, centre = _problem()
    _loss(taught, teaching, centre).backward()
    assert all(teacher.grad is None for teacher in teaching) and all(s.grad is not None for s in taught)
    assert not mean_logits(teaching).requires_grad
    assert not moved_centre(centre, mean_logits(teaching), momentum=0.9).requires_grad


def test_loss_is_never_below_the_entropy() -> None:
    """Only a student that agrees with the teacher reaches it."""
    taught, teaching, centre = _problem()
    doubt = entropy(teaching, centre=centre, temperature=TEACHER)
    assert _loss(taught, teaching, centre) > doubt
    same = [teaching[0]] * 2
    agreed = [STUDENT * distribution(teaching[0], centre, TEACHER).log()] * 6
    torch.testing.assert_close(_loss(agreed, same, centre), entropy(same, centre=centre, temperature=TEACHER))


def test_shares_of_a_batch_average_to_the_whole() -> None:
    taught, teaching, centre = _problem(rows=6)
    whole = _loss(taught, teaching, centre)
    cuts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    parts = [_loss([s[cut] for s in taught], [t[cut] for t in teaching], centre) for cut in cuts]
    torch.testing.assert_close(sum(parts) / 3, whole)
    means = [mean_logits([t[cut] for t in teaching]) for cut in cuts]
    torch.testing.assert_close(torch.stack(means).mean(0), mean_logits(teaching))


def test_centre_forgets_as_the_momentum_says() -> None:
    """From zero, ``n`` batches with the same mean: ``1 - m^n`` of it."""
    mean = mean_logits(_problem()[1])
    centre = torch.zeros_like(mean)
    for _ in range(5):
        centre = moved_centre(centre, mean, momentum=0.9)
    torch.testing.assert_close(centre, (1 - 0.9**5) * mean)


def test_precision_under_autocast_and_of_half_inputs() -> None:
    taught, teaching, centre = _problem(rows=16, prototypes=64)
    taught, teaching = ([crop.detach().float() for crop in crops] for crops in (taught, teaching))
    plain = _loss(taught, teaching, centre.float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = _loss(taught, teaching, centre.float())
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    half = _loss([crop.half() for crop in taught], [crop.half() for crop in teaching], centre.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.01, atol=0)


def test_inputs_stay_as_they_are() -> None:
    taught, teaching, centre = _problem()
    before = [crop.detach().clone() for crop in (*taught, *teaching, centre)]
    _loss(taught, teaching, centre).backward()
    entropy(teaching, centre=centre, temperature=TEACHER)
    moved_centre(centre, mean_logits(teaching), momentum=0.5)
    torch.testing.assert_close([crop.detach() for crop in (*taught, *teaching, centre)], before, rtol=0, atol=0)


def test_impossible_arguments() -> None:
    taught, teaching, centre = _problem()
    with pytest.raises(ValueError, match="teacher_temperature must be positive, got 0"):
        dino(taught, teaching, centre=centre, student_temperature=0.1, teacher_temperature=0.0)
    with pytest.raises(ValueError, match="1 student and 1 teacher crops"):
        _loss(taught[:1], teaching[:1], centre)
    with pytest.raises(ValueError, match="6 student and 0 teacher crops"):
        _loss(taught, [], centre)
    with pytest.raises(ValueError, match="1 student and 2 teacher crops"):
        _loss(taught[:1], teaching, centre)
    with pytest.raises(ValueError, match=r"logits \[\(4, 7\), \(5, 7\)\]"):
        _loss(taught, [teaching[0][:4], teaching[1]], centre)
    with pytest.raises(ValueError, match=r"centre \(6,\)"):
        _loss(taught, teaching, centre[:6])

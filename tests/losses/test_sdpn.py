"""SDPN's loss: lightly's MSN and KoLeo, loops over the equations, closed forms, precision, and shares of a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly.loss import KoLeoLoss, MSNLoss
from torch import Tensor
from torch.nn.functional import normalize

from rayssl.losses.sdpn import balanced, decorrelation, koleo, prediction, unevenness

STUDENT, SHARPEN = 0.1, 0.25
TEACHER = STUDENT * SHARPEN


def _rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def _problem(crops: int = 4, rows: int = 6, prototypes: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """The student's rows of every crop, the teacher's rows and the prototypes."""
    return _rows(crops, rows, 5), _rows(rows, 5, seed=1), _rows(prototypes, 5, seed=2)


def _loss(students: Tensor, teacher: Tensor, prototypes: Tensor, weight: float, iterations: int = 3) -> Tensor:
    kinds = normalize(prototypes, dim=1)
    codes = balanced(normalize(teacher, dim=1) @ kinds.T, temperature=TEACHER, iterations=iterations)
    found = prediction(normalize(students, dim=2) @ kinds.T, codes, temperature=STUDENT)
    return found.loss + weight * unevenness(found.mean)


@pytest.mark.parametrize(("crops", "iterations", "weight"), [(4, 3, 1.0), (2, 1, 0.0), (1, 10, 0.3)])
def test_lightlys_msn_in_value_and_gradient(crops: int, iterations: int, weight: float) -> None:
    students, teacher, prototypes = _problem(crops)
    msn = MSNLoss(STUDENT, iterations, weight)
    theirs = msn(students.flatten(0, 1), teacher, prototypes, target_sharpen_temperature=SHARPEN)
    ours = _loss(students, teacher, prototypes, weight, iterations)
    torch.testing.assert_close(ours, theirs)
    inputs = [students, prototypes]
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs))


def _softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    exponentials = np.exp(row / temperature)
    return exponentials / exponentials.sum()


def test_transcription() -> None:
    """In numpy, one row after the other: prototypes get the same total, then rows sum to 1, three times."""
    students, teacher, prototypes = (rows.detach().numpy() for rows in _problem())
    kinds = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    codes = np.stack([_softmax(kinds @ row / np.linalg.norm(row), TEACHER) for row in teacher])
    for _ in range(3):
        for k in range(len(kinds)):
            codes[:, k] /= codes[:, k].sum()
        for row in codes:
            row /= row.sum()
    guesses = [[_softmax(kinds @ row / np.linalg.norm(row), STUDENT) for row in crop] for crop in students]
    terms = [-(codes[n] * np.log(guess)).sum() for crop in guesses for n, guess in enumerate(crop)]
    mean = np.mean([guess for crop in guesses for guess in crop], axis=0)
    expected = np.mean(terms) + 0.7 * (np.log(len(kinds)) + (mean * np.log(mean)).sum())
    assert _loss(*_problem(), 0.7).item() == pytest.approx(expected, rel=1e-10)


def test_no_gradient_reaches_the_teacher() -> None:
    students, teacher, prototypes = _problem()
    _loss(students, teacher, prototypes, 1.0).backward()
    assert teacher.grad is None and students.grad is not None
    assert not balanced(teacher, temperature=0.1, iterations=1).requires_grad


def test_unevenness_of_known_means() -> None:
    assert unevenness(torch.full((8,), 1 / 8)).item() == pytest.approx(0, abs=1e-6)
    one = torch.zeros(8)
    one[3] = 1
    assert unevenness(one).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("rows", [2, 7])
def test_lightlys_koleo_in_value_and_gradient(rows: int) -> None:
    x = _rows(rows, 5)
    ours, theirs = koleo(x, x, offset=0), KoLeoLoss()(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # lightly adds 1e-8 to every coordinate
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x), rtol=1e-5, atol=1e-6)


def test_koleo_in_loops() -> None:
    x = _rows(7, 5)
    unit = x.detach().numpy() / np.linalg.norm(x.detach().numpy(), axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(7) if j != i) for i in range(7)]
    assert koleo(x, x, offset=0).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-10)


def test_koleo_of_equal_rows_has_no_gradient() -> None:
    """Two equal recordings in a batch must not push with the infinite force that the equation gives them."""
    x = torch.ones(2, 5, requires_grad=True)
    value = koleo(x, x, offset=0)
    value.backward()
    assert value.item() == pytest.approx(-math.log(1e-4)) and x.grad is not None and not x.grad.any()


def test_decorrelation_in_loops() -> None:
    x = _rows(7, 4).detach().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * 2
    expected = np.square(np.cov(x, rowvar=False) - np.eye(4)).sum() / 4
    assert decorrelation(torch.from_numpy(x) * 3).item() == pytest.approx(expected, rel=1e-10)


def test_decorrelation_falls_with_the_number_of_directions() -> None:
    """Rows along 1, 2 or all of 4 axes, both ways; 5000 random directions are near the minimum."""
    along = [torch.cat([torch.eye(4)[:count], -torch.eye(4)[:count]]) for count in (1, 2, 4)]
    values = [decorrelation(rows.repeat(50, 1)).item() for rows in along]
    assert values[0] > values[1] > values[2] and decorrelation(_rows(5000, 4).detach()).item() < 0.01


def test_shares_of_a_batch_average_to_the_whole() -> None:
    x, (students, teacher, prototypes) = _rows(6, 5), _problem()
    whole = koleo(x, x, offset=0)
    parts = [koleo(x[first : first + 2], x, offset=first) for first in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    codes = balanced(teacher @ prototypes.T, temperature=1.0, iterations=2)
    cosines = students @ prototypes.T
    found = [prediction(cosines[:, n : n + 2], codes[n : n + 2], temperature=1.0) for n in (0, 2, 4)]
    expected = prediction(cosines, codes, temperature=1.0)
    torch.testing.assert_close(sum(part.loss for part in found) / 3, expected.loss)
    torch.testing.assert_close(sum(part.mean for part in found) / 3, expected.mean)


def test_precision_under_autocast() -> None:
    students, teacher, prototypes = (rows.detach().float() for rows in _problem())
    cosines, keys = students @ prototypes.T / 9, teacher @ prototypes.T / 9

    def values() -> list[Tensor]:
        codes = balanced(keys, temperature=TEACHER, iterations=3)
        found = prediction(cosines, codes, temperature=STUDENT)
        return [found.loss, found.mean, koleo(teacher, teacher, offset=0), decorrelation(teacher)]

    plain = values()
    with torch.autocast("cpu", torch.bfloat16):
        cast = values()
    assert all(value.dtype == torch.float32 for value in cast)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_impossible_arguments() -> None:
    students, teacher, prototypes = _problem()
    cosines, codes = students @ prototypes.T, teacher @ prototypes.T
    with pytest.raises(ValueError, match=r"students \(4, 6, 9\) are not \[V, B, K\] for codes \(5, 9\)"):
        prediction(cosines, codes[:5], temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        prediction(cosines, codes, temperature=0.0)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        balanced(codes, temperature=-1.0, iterations=3)
    with pytest.raises(ValueError, match="at least two rows"):
        koleo(teacher[:1], teacher[:1], offset=0)
    with pytest.raises(ValueError, match=r"rows \(6, 5\) are not rows 1\.\.7 of keys \(6, 5\)"):
        koleo(teacher, teacher, offset=1)
    with pytest.raises(ValueError, match="at least two rows"):
        decorrelation(teacher[:1])

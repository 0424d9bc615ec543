"""VICReg: the paper's terms by brute force, lightly, closed forms, invariances, precision."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor

from rayssl.losses.vicreg import Terms, vicreg

FLOOR = 1e-4


def _views(rows: int = 6, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Some dimensions deviate by more than 1, some by less."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.3, 1.8, dim, dtype=torch.float64)
    return (a * scale).to(dtype).requires_grad_(), (b * scale + a).to(dtype).requires_grad_()


def _alone(a: Tensor, b: Tensor) -> Terms:
    return vicreg(a, b, keys_a=a, keys_b=b)


def _gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))


def _transcription(a: Tensor, b: Tensor) -> list[Tensor]:
    """s(Z, Z') over the dimensions (Eq. 5), v(Z) + v(Z') (Eq. 1, 2), c(Z) + c(Z') (Eq. 3, 4), in loops."""
    rows, dim = a.shape
    invariance = sum((x - y).norm() ** 2 for x, y in zip(a, b, strict=True)) / rows / dim
    variance, covariance = torch.zeros((), dtype=a.dtype), torch.zeros((), dtype=a.dtype)
    for z in (a, b):
        centred = [row - sum(z) / rows for row in z]
        matrix = sum(torch.outer(row, row) for row in centred) / (rows - 1)
        for d in range(dim):
            variance = variance + torch.clamp(1 - torch.sqrt(matrix[d, d] + FLOOR), min=0) / dim
            covariance = covariance + sum(matrix[d, e] ** 2 for e in range(dim) if e != d) / dim
    return [invariance, variance, covariance]  # type: ignore[list-item]


def test_transcription_in_value_and_gradient() -> None:
    a, b = _views()
    for ours, theirs in zip(_alone(a, b), _transcription(a, b), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


@pytest.mark.parametrize(("inv", "var", "cov"), [(25.0, 25.0, 1.0), (1.0, 1.0, 0.04)])
def test_lightly_in_value_and_gradient(inv: float, var: float, cov: float) -> None:
    """It takes half of the sum of the views' variances."""
    a, b = _views(rows=9, dim=5)
    theirs = VICRegLoss(inv, 2 * var, cov, eps=FLOOR)(a, b)
    terms = _alone(a, b)
    ours = inv * terms.invariance + var * terms.variance + cov * terms.covariance
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


def test_the_mean_of_the_variances_is_the_authors_loss() -> None:
    """With 25, 25 and 1, without a factor: what lightly has, after the authors' code."""
    a, b = _views(rows=9, dim=5)
    theirs = VICRegLoss(25.0, 25.0, 1.0, eps=FLOOR)(a, b)
    terms = vicreg(a, b, keys_a=a, keys_b=b, variance_mean=True)
    ours = 25 * terms.invariance + 25 * terms.variance + terms.covariance
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))
    torch.testing.assert_close(2 * terms.variance, _alone(a, b).variance)


def test_collapsed_views() -> None:
    """All rows equal: a variance of 1 - sqrt(floor) each, nothing else, and gradients that are finite."""
    a = torch.ones(6, 3, dtype=torch.float64).requires_grad_()
    terms = _alone(a, a)
    assert [term.item() for term in terms] == pytest.approx([0, 2 * (1 - math.sqrt(FLOOR)), 0])
    assert _gradients(terms.variance, a)[0].isfinite().all()


def test_spread_and_uncorrelated_views_cost_nothing() -> None:
    a = 2 * torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert [term.item() for term in _alone(a, a)] == [0, 0, 0]


def test_repeated_dimensions() -> None:
    """Two equal columns of variance 4: each has one covariance of 4, in both views."""
    column = torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=torch.float64)
    a = (column * math.sqrt(4 * 5 / 6))[:, None].repeat(1, 2)
    assert _alone(a, a).covariance.item() == pytest.approx(2 * 16)


def test_a_shift_of_one_view_is_seen_by_the_invariance_alone() -> None:
    a, b = _views()
    shift = torch.linspace(-2, 2, 4, dtype=torch.float64)
    moved, still = _alone(a, b + shift), _alone(a, b)
    torch.testing.assert_close(moved[1:], still[1:])
    assert moved.invariance > still.invariance
    torch.testing.assert_close(_alone(a + shift, b + shift), still)


def test_order_of_utterances_dimensions_and_views_does_not_matter() -> None:
    a, b = _views()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(_alone(a[order], b[order]), _alone(a, b))
    torch.testing.assert_close(_alone(a.flip(1), b.flip(1)), _alone(a, b))
    torch.testing.assert_close(_alone(b, a), _alone(a, b))


def test_shares_of_a_batch_average_to_the_whole() -> None:
    a, b = _views()
    parts = [vicreg(a[s : s + 2], b[s : s + 2], keys_a=a, keys_b=b) for s in (0, 2, 4)]
    for share, whole in zip(zip(*parts, strict=True), _alone(a, b), strict=True):
        torch.testing.assert_close(sum(share) / 3, whole)
        torch.testing.assert_close(_gradients(sum(share) / 3, a, b), _gradients(whole, a, b))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    a, b = _views(rows=32, dim=16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _alone(a, b)
    assert {term.dtype for term in cast} == {torch.float32}
    assert all(torch.equal(x, y) for x, y in zip(cast, _alone(a, b), strict=True))
    half = _alone(a.half(), b.half())
    torch.testing.assert_close(half, _alone(a.half().float(), b.half().float()), rtol=0, atol=0)


def test_inputs_stay_as_they_are() -> None:
    a, b = _views()
    before = a.detach().clone()
    sum(_alone(a, b)).backward()  # type: ignore[union-attr]
    assert torch.equal(a, before)


def test_impossible_arguments() -> None:
    a, b = _views()
    with pytest.raises(ValueError, match="at least two rows"):
        _alone(a[:1], b[:1])
    with pytest.raises(ValueError, match=r"b \(4, 4\)"):
        vicreg(a, b[:4], keys_a=a, keys_b=b)
    with pytest.raises(ValueError, match=r"keys \(6, 3\), \(6, 3\)"):
        vicreg(a, b, keys_a=a[:, :3], keys_b=b[:, :3])
    with pytest.raises(ValueError, match="floor must be positive"):
        vicreg(a, b, keys_a=a, keys_b=b, floor=0.0)

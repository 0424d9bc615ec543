"""Triplet mutual information: the formula by brute force, closed forms, scikit-learn, invariances, zeros, precision."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from rayssl.losses.aggregation import joint, mutual_information

C = 4


def _views(rows: int = 9, sharpness: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(3, rows, C, generator=generator, dtype=torch.float64)
    return [view.to(dtype).requires_grad_() for view in logits]


def _information(views: list[Tensor]) -> Tensor:
    return mutual_information(joint(*(view.softmax(dim=1) for view in views)))


def _transcription(views: list[Tensor]) -> Tensor:
    """P_ijk, averaged over the orders of the views, its marginals and the sum, in loops."""
    a, b, c = (view.softmax(dim=1) for view in views)
    p = {
        (i, j, k): sum(x[:, i] @ (y[:, j] * z[:, k]) for x, y, z in permutations((a, b, c))) / (6 * len(a))
        for i, j, k in product(range(C), repeat=3)
    }
    alone = [[sum(value for place, value in p.items() if place[axis] == i) for i in range(C)] for axis in range(3)]
    return sum(  # type: ignore[return-value]
        value * torch.log(value / (alone[0][i] * alone[1][j] * alone[2][k])) for (i, j, k), value in p.items()
    )


@pytest.mark.parametrize("sharpness", [0.5, 4.0])
def test_transcription_in_value_and_gradient(sharpness: float) -> None:
    views = _views(sharpness=sharpness)
    ours, theirs = _information(views), _transcription(views)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(value, views) for value in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other)


def test_joint_is_a_distribution_that_no_order_of_the_views_changes() -> None:
    views = [view.softmax(dim=1) for view in _views()]
    p = joint(*views)
    assert p.shape == (C, C, C) and p.sum().item() == pytest.approx(1)
    for order in permutations(range(3)):
        torch.testing.assert_close(p.permute(order), p)
        torch.testing.assert_close(joint(*(views[number] for number in order)), p)


def test_agreeing_views_of_even_classes_tell_the_most() -> None:
    p = torch.eye(C, dtype=torch.float64).repeat(3, 1)
    assert mutual_information(joint(p, p, p)).item() == pytest.approx(2 * math.log(C), rel=1e-12)
    assert mutual_information(joint(p[:6], p[:6], p[:6])).item() < 2 * math.log(C)  # classes 2 and 3 are rarer


def test_one_class_for_all_or_independent_views_tell_nothing() -> None:
    one = torch.eye(C, dtype=torch.float64)[[2] * 5].requires_grad_()
    even = torch.full((5, C), 1 / C, dtype=torch.float64)
    assert mutual_information(joint(one, one, one)).item() == pytest.approx(0, abs=1e-12)
    assert mutual_information(joint(even, even, even)).item() == pytest.approx(0, abs=1e-12)
    marginal = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    independent = torch.einsum("i,j,k->ijk", marginal, marginal.flip(0), marginal)
    assert mutual_information(independent).item() == pytest.approx(0, abs=1e-12)


def test_a_third_view_that_is_constant_leaves_the_pair_of_scikit_learn() -> None:
    """Of a joint that need not be symmetric: with one view known beforehand it is the ordinary mutual information."""
    a, b = torch.randint(0, C, (2, 60), generator=torch.Generator().manual_seed(3))
    p = torch.zeros(C, C, C, dtype=torch.float64)
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        p[i, j, 1] += 1 / 60
    assert mutual_information(p).item() == pytest.approx(mutual_info_score(a, b), rel=1e-9)


def test_rows_and_names_of_classes_do_not_matter() -> None:
    views = _views()
    order, names = torch.tensor([3, 0, 8, 1, 2, 7, 6, 5, 4]), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(_information([view[order][:, names] for view in views]), _information(views))


def test_zeros_and_underflow_give_finite_gradients() -> None:
    views = [(1e3 * view).detach().requires_grad_() for view in _views(dtype=torch.float32)]
    loss = -_information(views)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, views))


def test_descending_gathers_what_belongs_together() -> None:
    """A linear classifier of three noisy views finds the four clusters without a label."""
    generator = torch.Generator().manual_seed(1)
    clusters = torch.arange(24) % C
    centres = 2 * torch.eye(C, 6)
    clips = [centres[clusters] + 0.3 * torch.randn(24, 6, generator=generator) for _ in range(3)]
    weights = (0.3 * torch.randn(6, C, generator=generator)).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=0.2)
    for _ in range(60):
        optimiser.zero_grad()
        (-_information([clip @ weights for clip in clips])).backward()
        optimiser.step()
    assert _information([clip @ weights for clip in clips]).item() > 0.9 * 2 * math.log(C)
    assert len(torch.cat([C * clusters + (clip @ weights).argmax(1) for clip in clips]).unique()) == C


def test_precision_under_autocast_and_of_half_inputs() -> None:
    views = [view.softmax(dim=1) for view in _views(rows=64, dtype=torch.float32)]
    plain = mutual_information(joint(*views))
    with torch.autocast("cpu", torch.bfloat16):
        cast = mutual_information(joint(*views))
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    assert joint(*(view.half() for view in views)).dtype == torch.float32


def test_impossible_arguments() -> None:
    p = torch.full((5, C), 1 / C)
    for views in ((p, p, p[1:]), (p[0], p[0], p[0]), (p[:0], p[:0], p[:0])):
        with pytest.raises(ValueError, match="not probabilities of three views"):
            joint(*views)
    with pytest.raises(ValueError, match=r"\[C, C, C\], got \(4, 4\)"):
        mutual_information(p[:4])

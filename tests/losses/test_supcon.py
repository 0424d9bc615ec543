"""SupCon: the paper's formula by brute force, another library, closed forms, unknown labels, invariances, precision."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor

from rayssl.losses.ntxent import ntxent
from rayssl.losses.supcon import supcon

LABELS = torch.tensor([2, 0, -1, 2, 7, -1, 2, 0])


def _views(rows: int = 8, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    return a.requires_grad_(), b.requires_grad_()


def _alone(a: Tensor, b: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return supcon(a, b, labels, keys_a=a, keys_b=b, key_labels=labels, offset=0, temperature=temperature)


def _transcription(a: Tensor, b: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Eq. 2 (L_out) in loops, averaged over all anchors; a clip without a label is alone in its class."""
    z = [row / row.norm() for row in [*a, *b]]
    classes = [int(y) if y >= 0 else f"clip {n}" for n, y in enumerate(labels)] * 2
    total = torch.zeros((), dtype=a.dtype)
    for i, anchor in enumerate(z):
        others = [k for k in range(len(z)) if k != i]
        denominator = sum(torch.exp(anchor @ z[k] / temperature) for k in others)
        positives = [p for p in others if classes[p] == classes[i]]
        terms = [torch.log(torch.exp(anchor @ z[p] / temperature) / denominator) for p in positives]
        total = total - sum(terms) / len(positives)
    return total / len(z)


def _gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_transcription_in_value_and_gradient(temperature: float) -> None:
    a, b = _views()
    ours, theirs = _alone(a, b, LABELS, temperature), _transcription(a, b, LABELS, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_pytorch_metric_learning_in_value_and_gradient(temperature: float) -> None:
    a, b = _views(dim=6)
    single = torch.where(LABELS >= 0, LABELS, 100 + torch.arange(8))  # a class of its own for each without a label
    theirs = SupConLoss(temperature)(torch.cat([a, b]), single.repeat(2))
    ours = _alone(a, b, LABELS, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


@pytest.mark.parametrize("labels", [torch.full((8,), -1), torch.arange(8)])
def test_without_two_of_a_class_it_is_ntxent(labels: Tensor) -> None:
    a, b = _views()
    plain = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.1)
    ours = _alone(a, b, labels, 0.1)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(plain, a, b))


def test_all_equal_is_the_logarithm_of_the_candidates() -> None:
    a = torch.ones(8, 3)
    assert _alone(a, a, LABELS, 0.07).item() == pytest.approx(math.log(2 * 8 - 1), rel=1e-6)


def test_classes_on_orthogonal_points() -> None:
    labels = torch.arange(3).repeat_interleave(2)
    a = torch.eye(3, dtype=torch.float64)[labels]
    # 3 positives at similarity 1, 8 negatives at 0
    assert _alone(a, a, labels, 0.2).item() == pytest.approx(math.log(3 + 8 * math.exp(-1 / 0.2)), rel=1e-12)


def test_one_pair_costs_nothing() -> None:
    a, b = _views(rows=1)
    loss = _alone(a, b, torch.tensor([3]), 0.1)
    assert loss.item() == 0
    assert all(torch.isfinite(g).all() for g in _gradients(loss, a, b))


def test_norms_names_of_classes_order_and_views_do_not_matter() -> None:
    a, b = _views()
    plain = _alone(a, b, LABELS, 0.1)
    scale = torch.linspace(0.01, 50, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(_alone(a * scale, b / scale, LABELS, 0.1), plain)
    torch.testing.assert_close(_alone(a, b, torch.where(LABELS >= 0, 50 - LABELS, -9), 0.1), plain)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_alone(a[order], b[order], LABELS[order], 0.1), plain)
    torch.testing.assert_close(_alone(b, a, LABELS, 0.1), plain)


def test_shares_of_a_batch_average_to_the_whole() -> None:
    a, b = _views()
    whole = _alone(a, b, LABELS, 0.1)
    parts = [
        supcon(a[o], b[o], LABELS[o], keys_a=a, keys_b=b, key_labels=LABELS, offset=o.start, temperature=0.1)
        for o in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))
    ]
    torch.testing.assert_close(sum(parts) / 4, whole)
    torch.testing.assert_close(_gradients(sum(parts) / 4, a, b), _gradients(whole, a, b))


def test_silence_and_clipping_give_finite_gradients() -> None:
    a, b = _views(dtype=torch.float32)
    with torch.no_grad():
        a[0], b[1], a[3] = 0, 0, 1e18
    loss = _alone(a, b, LABELS, 0.03)
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in _gradients(loss, a, b))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    a, b = _views(dim=32, dtype=torch.float32)
    plain = _alone(a, b, LABELS, 0.03)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _alone(a, b, LABELS, 0.03)
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    half = _alone(a.half(), b.half(), LABELS, 0.03)
    torch.testing.assert_close(half, _alone(a.half().float(), b.half().float(), LABELS, 0.03), rtol=0, atol=0)


def test_impossible_arguments() -> None:
    a, b = _views()
    with pytest.raises(ValueError, match="temperature must be positive"):
        _alone(a, b, LABELS, 0.0)
    with pytest.raises(ValueError, match=r"rows 1\.\.9 of keys"):
        supcon(a, b, LABELS, keys_a=a, keys_b=b, key_labels=LABELS, offset=1, temperature=0.1)
    with pytest.raises(ValueError, match=r"labels \(7,\) .* 8 rows"):
        _alone(a, b, LABELS[1:], 0.1)

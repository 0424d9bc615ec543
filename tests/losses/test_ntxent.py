"""NT-Xent: the paper's formula by brute force, closed forms, invariances, another library, precision."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor

from rayssl.losses.ntxent import ntxent


def _views(rows: int = 5, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    return a.requires_grad_(), b.requires_grad_()


def _alone(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    return ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=temperature)


def _transcription(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """-log( exp(sim(z_i,z_j)/t) / sum over k != i of exp(sim(z_i,z_k)/t) ), averaged over all anchors i, in loops."""
    z = [*a, *b]
    count = len(a)
    total = torch.zeros((), dtype=a.dtype)
    for i in range(2 * count):
        similar = [torch.exp(z[i] @ z[k] / z[i].norm() / z[k].norm() / temperature) for k in range(2 * count)]
        denominator = sum(similar[k] for k in range(2 * count) if k != i)
        total = total - torch.log(similar[(i + count) % (2 * count)] / denominator)
    return total / (2 * count)


def _gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_transcription_in_value_and_gradient(temperature: float) -> None:
    a, b = _views()
    ours, theirs = _alone(a, b, temperature), _transcription(a, b, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_pytorch_metric_learning_in_value_and_gradient(temperature: float) -> None:
    a, b = _views(rows=8, dim=6)
    labels = torch.arange(8).repeat(2)
    theirs = NTXentLoss(temperature)(torch.cat([a, b]), labels)
    ours = _alone(a, b, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


def test_all_equal_is_the_logarithm_of_the_candidates() -> None:
    a = torch.ones(6, 3)
    assert _alone(a, a, 0.07).item() == pytest.approx(math.log(2 * 6 - 1), rel=1e-6)


def test_orthogonal_utterances() -> None:
    a = torch.eye(5, dtype=torch.float64)
    expected = math.log(1 + (2 * 5 - 2) * math.exp(-1 / 0.2))
    assert _alone(a, a, 0.2).item() == pytest.approx(expected, rel=1e-12)


def test_one_pair_costs_nothing() -> None:
    a, b = _views(rows=1)
    loss = _alone(a, b, 0.1)
    assert loss.item() == 0
    assert all(torch.isfinite(g).all() for g in _gradients(loss, a, b))


def test_norms_do_not_matter() -> None:
    a, b = _views()
    scale = torch.linspace(0.01, 50, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(_alone(a * scale, b / scale, 0.1), _alone(a, b, 0.1))


def test_order_of_utterances_and_of_views_does_not_matter() -> None:
    a, b = _views()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(_alone(a[order], b[order], 0.1), _alone(a, b, 0.1))
    torch.testing.assert_close(_alone(b, a, 0.1), _alone(a, b, 0.1))


def test_shares_of_a_batch_average_to_the_whole() -> None:
    a, b = _views(rows=6)
    whole = _alone(a, b, 0.1)
    parts = [ntxent(a[s : s + 2], b[s : s + 2], keys_a=a, keys_b=b, offset=s, temperature=0.1) for s in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    torch.testing.assert_close(_gradients(sum(parts) / 3, a, b), _gradients(whole, a, b))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    a, b = _views(rows=16, dim=32, dtype=torch.float32)
    plain = _alone(a, b, 0.03)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _alone(a, b, 0.03)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    half = _alone(a.half(), b.half(), 0.03)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, _alone(a.half().float(), b.half().float(), 0.03), rtol=0, atol=0)


def test_negatives_that_are_left_out_in_value_and_gradient() -> None:
    """In loops: utterance k is in the sum of utterance i, in both views, unless it is left out."""
    a, b = _views(rows=6)
    left_out = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    assert left_out.any() and left_out.diagonal().any() and not left_out.all(dim=1).any()
    z, total = [*a, *b], torch.zeros((), dtype=torch.float64)
    for i in range(12):
        similar = [torch.exp(z[i] @ z[k] / z[i].norm() / z[k].norm() / 0.3) for k in range(12)]
        counted = [similar[k] for k in range(12) if k != i and (k % 6 == i % 6 or not left_out[i % 6, k % 6])]
        total = total - torch.log(similar[(i + 6) % 12] / torch.stack(counted).sum())
    ours = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.3, left_out=left_out)
    torch.testing.assert_close(ours, total / 12)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(total / 12, a, b))


def test_without_any_negative_it_costs_nothing() -> None:
    a, b = _views()
    loss = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.3, left_out=torch.ones(5, 5, dtype=torch.bool))
    assert loss.item() == 0
    assert all(not g.any() for g in _gradients(loss, a, b))


def test_inputs_stay_as_they_are() -> None:
    a, b = _views()
    before = a.detach().clone()
    _alone(a, b, 0.1).backward()
    assert torch.equal(a, before)


def test_impossible_arguments() -> None:
    a, b = _views()
    with pytest.raises(ValueError, match="temperature must be positive"):
        _alone(a, b, 0.0)
    with pytest.raises(ValueError, match=r"rows 1\.\.6 of keys"):
        ntxent(a, b, keys_a=a, keys_b=b, offset=1, temperature=0.1)
    with pytest.raises(ValueError, match=r"left_out \(5, 4\) is not \[5, 5\]"):
        ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.1, left_out=torch.ones(5, 4))
    with pytest.raises(ValueError, match=r"b \(4, 4\)"):
        ntxent(a, b[:4], keys_a=a, keys_b=b, offset=0, temperature=0.1)

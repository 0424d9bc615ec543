"""CCSSL: the formula by brute force, SupCon of another library, NT-Xent, push, invariances, precision."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn.functional import one_hot

from rayssl.losses.ccssl import ccssl
from rayssl.losses.ntxent import ntxent

LABELS = torch.tensor([2, 0, 1, 2, 3, 0, 2, 0])


def _inputs(rows: int = 8, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    pseudo = torch.randn(rows, 4, generator=generator, dtype=torch.float64).mul(2).softmax(1).to(dtype)
    return a.requires_grad_(), b.requires_grad_(), pseudo


def _alone(a: Tensor, b: Tensor, pseudo: Tensor, temperature: float = 0.07, push: float = 0.0) -> Tensor:
    keys = {"keys_a": a, "keys_b": b, "key_pseudo": pseudo}
    return ccssl(a, b, pseudo, **keys, offset=0, temperature=temperature, push=push)


def _transcription(a: Tensor, b: Tensor, pseudo: Tensor, temperature: float, push: float) -> Tensor:
    z = [row / row.norm() for row in [*a, *b]]
    y = [*pseudo, *pseudo]
    total = torch.zeros((), dtype=a.dtype)
    for i, anchor in enumerate(z):
        others = [k for k in range(len(z)) if k != i]
        denominator = sum(torch.exp(anchor @ z[k] / temperature) for k in others)
        above = norm = torch.zeros((), dtype=a.dtype)
        for k in others:
            if k == (i + len(a)) % len(z):
                weight = torch.ones((), dtype=a.dtype)
            elif y[i].argmax() == y[k].argmax() and y[i].max() >= push and y[k].max() >= push:
                weight = y[i].max() * y[k].max()
            else:
                continue
            above = above + weight * torch.log(torch.exp(anchor @ z[k] / temperature) / denominator)
            norm = norm + weight
        total = total - above / norm
    return total / len(z)


def _gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("push", [0.0, 0.75])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_transcription_in_value_and_gradient(temperature: float, push: float) -> None:
    a, b, pseudo = _inputs()
    assert 0 < (pseudo.max(1).values >= 0.75).sum() < 8
    ours, theirs = _alone(a, b, pseudo, temperature, push), _transcription(a, b, pseudo, temperature, push)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_certain_labels_are_supcon_of_pytorch_metric_learning(temperature: float) -> None:
    a, b, _ = _inputs(dim=6)
    theirs = SupConLoss(temperature)(torch.cat([a, b]), LABELS.repeat(2))
    ours = _alone(a, b, one_hot(LABELS).double(), temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


@pytest.mark.parametrize("case", ["no confidence", "all below push", "a class each"])
def test_without_other_positives_it_is_ntxent(case: str) -> None:
    a, b, pseudo = _inputs()
    plain = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.1)
    given = {"no confidence": torch.zeros_like(pseudo), "all below push": pseudo, "a class each": torch.eye(8)}[case]
    ours = _alone(a, b, given, 0.1, 1.0 if case == "all below push" else 0.0)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(plain, a, b))


def test_all_equal_is_the_logarithm_of_the_candidates() -> None:
    a = torch.ones(8, 3)
    assert _alone(a, a, _inputs()[2]).item() == pytest.approx(math.log(2 * 8 - 1), rel=1e-6)


def test_classes_on_orthogonal_points() -> None:
    labels = torch.arange(3).repeat_interleave(2)
    a = torch.eye(3, dtype=torch.float64)[labels]
    # 3 positives at similarity 1, whatever their weights, and 8 negatives at 0
    sure = 0.6 * one_hot(labels).double()
    assert _alone(a, a, sure, 0.2).item() == pytest.approx(math.log(3 + 8 * math.exp(-1 / 0.2)), rel=1e-12)


def test_norms_names_of_classes_order_and_views_do_not_matter() -> None:
    a, b, pseudo = _inputs()
    plain = _alone(a, b, pseudo, 0.1)
    scale = torch.linspace(0.01, 50, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(_alone(a * scale, b / scale, pseudo, 0.1), plain)
    torch.testing.assert_close(_alone(a, b, pseudo[:, [3, 1, 0, 2]], 0.1), plain)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(_alone(a[order], b[order], pseudo[order], 0.1), plain)
    torch.testing.assert_close(_alone(b, a, pseudo, 0.1), plain)


def test_shares_of_a_batch_average_to_the_whole() -> None:
    a, b, pseudo = _inputs()
    whole = _alone(a, b, pseudo, 0.1)
    keys = {"keys_a": a, "keys_b": b, "key_pseudo": pseudo, "temperature": 0.1}
    parts = [ccssl(a[i : i + 2], b[i : i + 2], pseudo[i : i + 2], **keys, offset=i) for i in (0, 2, 4, 6)]
    torch.testing.assert_close(sum(parts) / 4, whole)
    torch.testing.assert_close(_gradients(sum(parts) / 4, a, b), _gradients(whole, a, b))


VALID = torch.tensor([1, 0, 1, 1, 1, 0, 0, 1]).bool()


@pytest.mark.parametrize("push", [0.0, 0.75])
def test_rows_that_are_not_valid_are_as_if_left_out(push: float) -> None:
    a, b, pseudo = _inputs()
    keys = {"keys_a": a, "keys_b": b, "key_pseudo": pseudo, "temperature": 0.1, "push": push}
    ours = ccssl(a, b, pseudo, **keys, offset=0, valid=VALID, key_valid=VALID)
    theirs = _alone(a[VALID], b[VALID], pseudo[VALID], 0.1, push)
    torch.testing.assert_close(ours, theirs)
    found = _gradients(ours, a, b)
    torch.testing.assert_close(found, _gradients(theirs, a, b))
    assert all((gradient[~VALID] == 0).all() and torch.isfinite(gradient).all() for gradient in found)


def test_shares_with_more_and_fewer_valid_rows_average_to_the_whole() -> None:
    a, b, pseudo = _inputs()
    keys = {"keys_a": a, "keys_b": b, "key_pseudo": pseudo, "temperature": 0.1, "key_valid": VALID}
    whole = ccssl(a, b, pseudo, **keys, offset=0, valid=VALID)
    own = [slice(i, i + 2) for i in (0, 2, 4, 6)]
    parts = [ccssl(a[k], b[k], pseudo[k], **keys, offset=k.start, valid=VALID[k]) for k in own]
    torch.testing.assert_close(sum(parts) / 4, whole)
    torch.testing.assert_close(_gradients(sum(parts) / 4, a, b), _gradients(whole, a, b))


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_pair_of_valid_rows_it_is_0(count: int) -> None:
    a, b, pseudo = _inputs(dtype=torch.float32)
    valid = torch.arange(8) < count
    keys = {"keys_a": a, "keys_b": b, "key_pseudo": pseudo}
    loss = ccssl(a, b, pseudo, **keys, offset=0, valid=valid, key_valid=valid)
    assert loss.item() == 0 and all((gradient == 0).all() for gradient in _gradients(loss, a, b))


def test_no_gradient_flows_to_the_labels() -> None:
    a, b, pseudo = _inputs()
    pseudo.requires_grad_()
    assert torch.autograd.grad(_alone(a, b, pseudo), pseudo, allow_unused=True) == (None,)


def test_silence_and_clipping_give_finite_gradients() -> None:
    a, b, pseudo = _inputs(dtype=torch.float32)
    with torch.no_grad():
        a[0], b[1], a[3] = 0, 0, 1e18
    loss = _alone(a, b, pseudo, 0.03)
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in _gradients(loss, a, b))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    a, b, pseudo = _inputs(dim=32, dtype=torch.float32)
    plain = _alone(a, b, pseudo, 0.03)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _alone(a, b, pseudo, 0.03)
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    half = _alone(a.half(), b.half(), pseudo, 0.03)
    torch.testing.assert_close(half, _alone(a.half().float(), b.half().float(), pseudo, 0.03), rtol=0, atol=0)


def test_impossible_arguments() -> None:
    a, b, pseudo = _inputs()
    keys = {"keys_a": a, "keys_b": b, "key_pseudo": pseudo}
    with pytest.raises(ValueError, match="temperature must be positive"):
        _alone(a, b, pseudo, 0.0)
    with pytest.raises(ValueError, match=r"rows 1\.\.9 of keys"):
        ccssl(a, b, pseudo, **keys, offset=1)
    with pytest.raises(ValueError, match=r"pseudo \(7, 4\) .* 8 rows"):
        ccssl(a, b, pseudo[1:], **keys, offset=0)
    everyone = torch.ones(8).bool()
    with pytest.raises(ValueError, match="give both of valid and key_valid, or neither"):
        ccssl(a, b, pseudo, **keys, offset=0, valid=everyone)
    with pytest.raises(ValueError, match=r"key_valid must be bool \[8\], got torch.float32 \(8,\)"):
        ccssl(a, b, pseudo, **keys, offset=0, valid=everyone, key_valid=everyone.float())

"""Noise consistency: the three distances by brute force and by SciPy, bounds, padding, gradients, precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from torch.nn.functional import kl_div

from rayssl.losses.noise_consistency import noise_consistency

DISTANCES: Any = ["js", "kl", "mse"]
VALID = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()


def _logits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noisy = (2 * torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)).to(dtype)
    return clean.requires_grad_(), noisy.requires_grad_()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return sum(p[c] * torch.log(p[c] / q[c]) for c in range(len(p)))


def _transcription(clean: Tensor, noisy: Tensor, distance: str, valid: Tensor) -> Tensor:
    total = torch.zeros((), dtype=clean.dtype)
    for place in valid.nonzero().tolist():
        p, q = (torch.exp(x[tuple(place)]) / torch.exp(x[tuple(place)]).sum() for x in (clean, noisy))
        m = (p + q) / 2
        total = (
            total
            + {
                "js": (_divergence(p, m) + _divergence(q, m)) / 2,
                "kl": _divergence(p, q),
                "mse": ((p - q) ** 2).mean(),
            }[distance]
        )
    return total


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "padded"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_transcription_in_value_and_gradient(distance: Any, valid: Tensor | None) -> None:
    clean, noisy = _logits()
    total, count = noise_consistency(clean, noisy, distance=distance, valid=valid)
    inside = torch.ones(2, 3, dtype=torch.bool) if valid is None else valid
    expected = _transcription(clean, noisy, distance, inside)
    assert count.item() == inside.sum()
    torch.testing.assert_close(total, expected)
    found, theirs = (torch.autograd.grad(x, (clean, noisy)) for x in (total, expected))
    torch.testing.assert_close(found, theirs)


def test_scipy_and_torch_have_the_same_divergences() -> None:
    clean, noisy = (x.detach() for x in _logits())
    p, q = clean.softmax(-1), noisy.softmax(-1)
    js = (jensenshannon(p.reshape(-1, 4).numpy(), q.reshape(-1, 4).numpy(), axis=1) ** 2).sum()
    assert noise_consistency(clean, noisy)[0].item() == pytest.approx(js)
    kl = kl_div(noisy.log_softmax(-1), p, reduction="sum")
    torch.testing.assert_close(noise_consistency(clean, noisy, distance="kl")[0], kl)


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_views_cost_nothing_and_constants_do_not_matter(distance: Any) -> None:
    clean, noisy = _logits()
    assert noise_consistency(clean, clean + 5, distance=distance)[0].item() == pytest.approx(0, abs=1e-12)
    plain, _ = noise_consistency(clean, noisy, distance=distance)
    shift = torch.linspace(-3, 3, 6, dtype=torch.float64).view(2, 3, 1)
    torch.testing.assert_close(noise_consistency(clean + shift, noisy - shift, distance=distance)[0], plain)
    order = [3, 1, 0, 2]
    torch.testing.assert_close(noise_consistency(clean[..., order], noisy[..., order], distance=distance)[0], plain)
    swapped, _ = noise_consistency(noisy, clean, distance=distance)
    assert torch.isclose(swapped, plain) == (distance != "kl")


def test_opposite_certainties_reach_the_bound() -> None:
    clean, noisy = torch.tensor([[50.0, 0, 0]]), torch.tensor([[0.0, 50, 0]])
    assert noise_consistency(clean, noisy)[0].item() == pytest.approx(math.log(2), rel=1e-6)
    assert noise_consistency(clean, noisy, distance="kl")[0].item() == pytest.approx(50, rel=1e-6)
    assert noise_consistency(clean, noisy, distance="mse")[0].item() == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_detached_clean_view_has_no_gradient(distance: Any) -> None:
    clean, noisy = _logits()
    plain, _ = noise_consistency(clean, noisy, distance=distance)
    detached, _ = noise_consistency(clean, noisy, distance=distance, detach_clean=True)
    assert torch.equal(plain, detached)
    of_clean, of_noisy = torch.autograd.grad(detached, (clean, noisy), allow_unused=True)
    assert of_clean is None
    torch.testing.assert_close(of_noisy, torch.autograd.grad(plain, noisy)[0])


def test_no_epochs_and_extreme_logits_are_finite() -> None:
    clean, noisy = _logits(torch.float32)
    total, count = noise_consistency(clean, noisy, valid=torch.zeros(2, 3, dtype=torch.bool))
    assert (total.item(), count.item()) == (0, 0) and not torch.autograd.grad(total, noisy)[0].any()
    for distance in DISTANCES:
        loss, _ = noise_consistency(1e4 * clean, -1e4 * noisy, distance=distance)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (clean, noisy)))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    clean, noisy = _logits(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast, count = noise_consistency(clean, noisy)
    assert cast.dtype == count.dtype == torch.float32 and torch.equal(cast, noise_consistency(clean, noisy)[0])
    half = noise_consistency(clean.half(), noisy.half())
    torch.testing.assert_close(half, noise_consistency(clean.half().float(), noisy.half().float()), rtol=0, atol=0)


def test_impossible_arguments() -> None:
    clean, noisy = _logits()
    with pytest.raises(ValueError, match=r"clean \(2, 3, 4\) and noisy \(2, 2, 4\)"):
        noise_consistency(clean, noisy[:, :2])
    with pytest.raises(ValueError, match="distance must be js, kl or mse, got l2"):
        noise_consistency(clean, noisy, distance="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"valid must be bool \(2, 3\)"):
        noise_consistency(clean, noisy, valid=torch.ones(2, 3))

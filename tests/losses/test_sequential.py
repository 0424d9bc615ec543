"""Sequential consistency: the formula by brute force, closed forms, rotations, the trap of collapse, padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.losses.sequential import pair_weights, sequential_consistency


def _views(sequences: int = 3, epochs: int = 5, dim: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, sequences, epochs, dim, generator=generator, dtype=torch.float64)
    return [view.to(dtype).requires_grad_() for view in views]


def _transcription(
    a: Tensor, b: Tensor, w_min: float = 0.5, distance: str = "l2", real: Tensor | None = None
) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    sequences, epochs = a.shape[:2]
    for s in range(sequences):
        inside = [i for i in range(epochs) if real is None or real[s, i]]
        for i in inside:
            for j in inside:
                cos_a = a[s, i] @ a[s, j] / (a[s, i].norm() * a[s, j].norm())
                cos_b = b[s, i] @ b[s, j] / (b[s, i].norm() * b[s, j].norm())
                weight = 1 - (1 - w_min) * abs(i - j) / max(epochs - 1, 1)
                term = (cos_a - cos_b) ** 2 if distance == "l2" else abs(cos_a - cos_b)
                total = total + weight * term / max(len(inside), 1) ** 2
    return total / sequences


def _gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize("real", [None, REAL], ids=["all", "padded"])
@pytest.mark.parametrize(("w_min", "distance"), [(0.5, "l2"), (0.2, "l2"), (0.5, "l1")])
def test_transcription_in_value_and_gradient(w_min: float, distance: Any, real: Tensor | None) -> None:
    a, b = _views()
    ours = sequential_consistency(a, b, w_min=w_min, distance=distance, real=real)
    theirs = _transcription(a, b, w_min, distance, real)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, a, b), _gradients(theirs, a, b))


def test_gradient_by_finite_differences() -> None:
    a, b = _views(2, 3)
    assert torch.autograd.gradcheck(sequential_consistency, (a, b))


def test_the_row_of_weights_of_the_paper() -> None:
    weights = pair_weights(6, w_min=0.5)
    torch.testing.assert_close(weights[0], torch.tensor([1, 0.9, 0.8, 0.7, 0.6, 0.5], dtype=torch.float64))
    assert torch.equal(weights, weights.T) and torch.equal(weights, weights.flip(0, 1))
    assert weights.diagonal().eq(1).all()
    assert pair_weights(1, w_min=0.5).tolist() == [[1.0]]


def test_two_epochs_by_hand() -> None:
    """Same in view a, at a right angle in view b: two pairs with weight w_min and difference 1, of four."""
    a = torch.tensor([[[1.0, 0], [2, 0]]], dtype=torch.float64)
    b = torch.tensor([[[3.0, 0], [0, 1]]], dtype=torch.float64)
    for distance in ("l2", "l1"):
        assert sequential_consistency(a, b, w_min=0.3, distance=distance).item() == pytest.approx(2 * 0.3 / 4)


def test_equal_views_and_single_epochs_cost_nothing() -> None:
    a, b = _views()
    assert sequential_consistency(a, 3 * a).item() == pytest.approx(0, abs=1e-30)
    # an epoch with itself, the diagonal, is always 1
    assert sequential_consistency(a[:, :1], b[:, :1]).item() == pytest.approx(0, abs=1e-30)


def test_a_rotation_of_each_view_norms_and_order_do_not_matter() -> None:
    a, b = _views()
    plain = sequential_consistency(a, b)
    generator = torch.Generator().manual_seed(1)
    turn_a, turn_b = torch.linalg.qr(torch.randn(2, 4, 4, generator=generator, dtype=torch.float64))[0]
    torch.testing.assert_close(sequential_consistency(a @ turn_a, b @ turn_b), plain)
    scale = torch.rand(3, 5, 1, generator=generator, dtype=torch.float64) + 0.1
    torch.testing.assert_close(sequential_consistency(a * scale, b / scale), plain)
    torch.testing.assert_close(sequential_consistency(a[[2, 0, 1]], b[[2, 0, 1]]), plain)
    torch.testing.assert_close(sequential_consistency(b, a), plain)
    torch.testing.assert_close(sequential_consistency(a.flip(1), b.flip(1)), plain)
    assert abs(sequential_consistency(a, b[:, [1, 0, 2, 3, 4]]) - plain) > 1e-3  # the order of epochs does matter


def test_a_detached_view_has_no_gradient() -> None:
    a, b = _views()
    plain, detached = sequential_consistency(a, b), sequential_consistency(a, b, detach_b=True)
    assert torch.equal(plain, detached)
    of_a, of_b = torch.autograd.grad(detached, (a, b), allow_unused=True)
    assert of_b is None
    torch.testing.assert_close(of_a, _gradients(plain, a)[0])


def _rank(z: Tensor) -> float:
    """The effective rank: exp of the entropy of the shares of the squared singular values."""
    shares = torch.linalg.svdvals(torch.nn.functional.normalize(z, dim=1)).square()
    shares = shares / shares.sum()
    return math.exp(-(shares * shares.clamp_min(1e-12).log()).sum())


def test_alone_it_collapses() -> None:
    """The trap: two noisy views of the same epochs are made equal by making all epochs equal."""
    generator = torch.Generator().manual_seed(0)
    night, noise = (torch.randn(n, 4, 12, 16, generator=generator) for n in (1, 2))
    views = night + noise
    weight = (torch.randn(16, 8, generator=generator) / 4).requires_grad_()
    bias = torch.zeros(8, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=0.02)
    losses, ranks = [], []
    for _ in range(300):
        a, b = views @ weight + bias
        loss = sequential_consistency(a, b)
        losses.append(loss.item())
        ranks.append(_rank(a.detach()[0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] > 0.05 and losses[-1] < 0.002 * losses[0]
    assert ranks[0] > 4 and ranks[-1] < 1.5
    assert sequential_consistency(torch.ones(2, 6, 3), torch.full((2, 6, 3), 7.0)).item() == pytest.approx(0, abs=1e-12)


def test_silent_rows_and_no_real_epochs_give_finite_gradients() -> None:
    a, b = _views(dtype=torch.float32)
    with torch.no_grad():
        a[0, 0], b[1, 1], a[2, 3] = 0, 0, 1e18
    loss = sequential_consistency(a, b, real=torch.tensor([[True] * 5, [False] * 5, [True] * 5]))
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in _gradients(loss, a, b))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    a, b = _views(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sequential_consistency(a, b)
    assert cast.dtype == torch.float32 and torch.equal(cast, sequential_consistency(a, b))
    half = sequential_consistency(a.half(), b.half())
    torch.testing.assert_close(half, sequential_consistency(a.half().float(), b.half().float()), rtol=0, atol=0)


def test_impossible_arguments() -> None:
    a, b = _views()
    with pytest.raises(ValueError, match=r"w_min must be in 0\.\.1, got 1\.5"):
        sequential_consistency(a, b, w_min=1.5)
    with pytest.raises(ValueError, match="distance must be l2 or l1, got cosine"):
        sequential_consistency(a, b, distance="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a \(3, 5, 4\) and b \(2, 5, 4\)"):
        sequential_consistency(a, b[:2])
    with pytest.raises(ValueError, match=r"real must be bool \(3, 5\)"):
        sequential_consistency(a, b, real=torch.ones(3, 5))

"""Hand-written gradients against finite differences and autograd."""

import pytest
import torch

from rayssl.models.statistics import attended_moments, moments


def test_moments_are_torchs() -> None:
    x = torch.randn(3, 4, 9)
    variance, mean = torch.var_mean(x, dim=2, correction=0)
    torch.testing.assert_close(moments(x), (mean, variance))


def test_attended_moments_are_the_weighted_ones() -> None:
    x, scores = torch.randn(2, 3, 4, 9).double()
    weights = scores.exp() / scores.exp().sum(2, keepdim=True)
    mean = (weights * x).sum(2)
    variance = (weights * x * x).sum(2) - mean.square()
    torch.testing.assert_close(attended_moments(x, scores), (mean, variance))
    torch.testing.assert_close(attended_moments(x, torch.zeros_like(x)), moments(x))


def test_gradients_by_finite_differences() -> None:
    x, scores = torch.randn(2, 2, 3, 5).double().requires_grad_().unbind()
    assert torch.autograd.gradcheck(moments, (x,))
    assert torch.autograd.gradcheck(attended_moments, (x, scores))


def test_half_precision_is_widened() -> None:
    x = torch.randn(2, 3, 50).bfloat16().requires_grad_()
    mean, variance = attended_moments(x, x)
    assert mean.dtype == variance.dtype == torch.float32
    (mean + variance).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("time", [1, 2])
def test_either_axis_and_both_gradients(time: int) -> None:
    x, scores = torch.randn(2, 2, 4, 5).double().requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda x, s: (*moments(x, time), *attended_moments(x, s, time)), (x, scores))


def test_only_weights_are_stored_wide() -> None:
    """The gradient needs no copy of the input: what a GPU holds during a step is the input in bf16, and the weights."""
    x, scores = torch.randn(2, 3, 50, 4).bfloat16().requires_grad_().unbind()
    stored: list[torch.Tensor] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        stored.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        (*_, variance) = *moments(x, 1), *attended_moments(x, scores, 1)
    large = [value for value in stored if value.numel() == x.numel()]
    assert [value.dtype for value in large] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(value.data_ptr() == x.data_ptr() for value in large[:2])
    assert variance.dtype == torch.float32

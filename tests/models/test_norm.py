"""Batch normalisation on one process is torch's own; over several ranks: tests/ranks/test_norm.py."""

import copy

import torch
from torch import nn

from rayssl.models.norm import BatchNorm1d, BatchNorm2d, _over_ranks, set_sync


def test_without_ranks_it_is_torchs() -> None:
    for ours, theirs, shape in (
        (BatchNorm1d(5, sync=True), nn.BatchNorm1d(5), (8, 5, 7)),
        (BatchNorm2d(5, sync=True), nn.BatchNorm2d(5), (8, 5, 3, 4)),
    ):
        x = torch.randn(shape)
        assert torch.equal(ours(x), theirs(x))
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert torch.equal(ours.running_var, theirs.running_var)


def test_synchronised_formula_over_one_rank_is_torchs() -> None:
    """The merged moments, in value, gradients and running statistics; a mean of 100 would break sums of squares."""
    norm = BatchNorm1d(5)
    nn.init.normal_(norm.weight)
    other = copy.deepcopy(norm)
    x = (torch.randn(8, 5, 7) + 100.0).requires_grad_()
    y = x.detach().clone().requires_grad_()
    cotangent = torch.randn(8, 5, 7)
    out, expected = _over_ranks(norm, x), other(y)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)
    out.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=2e-4)
    torch.testing.assert_close(norm.weight.grad, other.weight.grad, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(norm.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-4)


def test_set_sync_reaches_every_norm() -> None:
    model = nn.Sequential(BatchNorm1d(2), nn.Sequential(BatchNorm2d(2), nn.Linear(2, 2)))
    set_sync(model, True)
    assert [part.sync for part in model.modules() if hasattr(part, "sync")] == [True, True]
    set_sync(model, False)
    assert [part.sync for part in model.modules() if hasattr(part, "sync")] == [False, False]

"""Two ranks with half the batch each normalise, learn and remember as one rank with all of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rayssl.models.norm import BatchNorm1d, BatchNorm2d, set_sync

pytestmark = pytest.mark.ranks
Result = dict[str, Any]


def _model(dimensions: int, sync: bool) -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1) if dimensions == 2 else nn.Conv1d(3, 5, 1),
        BatchNorm2d(5) if dimensions == 2 else BatchNorm1d(5),
        nn.ReLU(),
    ).double()
    set_sync(model, sync)
    return model


def _batch(dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (4, 6) if dimensions == 2 else (6,)
    x = torch.randn(8, 3, *shape, generator=generator).double()
    # halves that differ in mean and scale, so that a rank's own statistics would show
    x[4:] = 3.0 * x[4:] + 7.0
    return x, torch.randn(8, 5, *shape, generator=generator).double()


def _step(dimensions: int, rows: slice, share: float, sync: bool) -> Result:
    """Loss of a rank: ``share`` of the sum over its rows, so that the mean over ranks is the whole batch's."""
    model, (x, cotangent) = _model(dimensions, sync), _batch(dimensions)
    x = x[rows].requires_grad_()
    out = model(x)
    (share * (out * cotangent[rows]).sum()).backward()
    state = {name: value.clone() for name, value in model.named_buffers()}
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {"out": out.detach(), "x": x.grad, "gradients": gradients, "state": state}


def _rank_step(rank: int, world: int, dimensions: int, sync: bool, cuts: list[int]) -> Result:
    return _step(dimensions, slice(cuts[rank], cuts[rank + 1]), float(world), sync)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 3, 8]], ids=["equal", "unequal"])
def test_two_ranks_are_one(ranks: Callable[..., list[Result]], dimensions: int, cuts: list[int]) -> None:
    results = ranks(_rank_step, dimensions, True, cuts, world=2)
    whole = _step(dimensions, slice(0, 8), 1.0, False)
    torch.testing.assert_close(torch.cat([result["out"] for result in results]), whole["out"])
    # each rank's loss counts half in the mean over ranks
    torch.testing.assert_close(torch.cat([result["x"] for result in results]) / 2, whole["x"])
    for name, expected in whole["gradients"].items():
        torch.testing.assert_close(sum(result["gradients"][name] for result in results) / 2, expected)
    for result in results:
        torch.testing.assert_close(result["state"], whole["state"])


def test_unsynchronised_ranks_differ(ranks: Callable[..., list[Result]]) -> None:
    results = ranks(_rank_step, 1, False, [0, 4, 8], world=2)
    out = torch.cat([result["out"] for result in results])
    assert not torch.allclose(out, _step(1, slice(0, 8), 1.0, False)["out"], atol=0.1)

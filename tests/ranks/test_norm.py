"""Two ranks with half the batch each normalise, learn and remember as one rank with all of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayssl.models import norm as norm_module
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


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, _places(x), correction=0)
    return mean, (variance + eps).rsqrt()


def _merged(
    x: Tensor,
    means: Tensor,
    scales: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    counts = counts[:, None]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (scales.pow(-2) - eps + (means - mean).square())).sum(0) / total
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Tensor:
    return _along(x, weight * scale) * (x - _along(x, mean)) + _along(x, bias)


def _sums(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_bias, of_scaled = grad.sum(_places(x)), (grad * (x - _along(x, mean))).sum(_places(x))
    return of_bias, of_scaled, of_scaled * scale, of_bias.clone()


def _back(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, of_bias: Tensor, of_x: Tensor, counts: Tensor
) -> Tensor:
    total = counts.sum()
    centred = grad - _along(x, of_bias / total) - (x - _along(x, mean)) * _along(x, of_x / total * scale.square())
    return centred * _along(x, weight * scale)


def _places(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _along(x: Tensor, values: Tensor) -> Tensor:
    return values.view(1, -1, *(1 for _ in range(x.dim() - 2)))


def _both_ways(rank: int, world: int, cuts: list[int], shape: tuple[int, ...]) -> tuple[Result, Result]:
    """The formula for any backend, and the function with torch's kernels for GPUs, which are written out above."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("batch_norm_stats", _stats),
        ("batch_norm_gather_stats_with_counts", _merged),
        ("batch_norm_elemt", _normalised),
        ("batch_norm_backward_reduce", _sums),
        ("batch_norm_backward_elemt", _back),
    ):
        library.impl(name, function, "CPU")
    found = []
    try:
        for formula in (norm_module._anywhere, norm_module._on_gpu):
            torch.manual_seed(4)
            norm = (BatchNorm2d(5) if len(shape) == 2 else BatchNorm1d(5)).double()
            torch.nn.init.normal_(norm.weight)
            x = torch.randn(8, 5, *shape).double()
            x[4:] = 3.0 * x[4:] + 7.0
            cotangent = torch.randn(8, 5, *shape).double()[cuts[rank] : cuts[rank + 1]]
            x = x[cuts[rank] : cuts[rank + 1]].requires_grad_()
            out = formula(norm, x)
            out.backward(cotangent)
            gradients = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
            found.append({"out": out.detach(), **gradients, **dict(norm.named_buffers())})
    finally:
        library._destroy()
    return found[0], found[1]


@pytest.mark.parametrize("shape", [(), (6,), (4, 6)], ids=str)
@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 3, 8]], ids=["equal", "unequal"])
def test_torchs_kernels_for_gpus_get_what_they_need(
    ranks: Callable[..., list[Any]], shape: tuple[int, ...], cuts: list[int]
) -> None:
    for expected, found in ranks(_both_ways, cuts, shape, world=2):
        torch.testing.assert_close(found, expected)

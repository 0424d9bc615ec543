"""A linear encoder that losses share: what each rank finds with its rows, and how that must equal one rank's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

Loss: TypeAlias = Callable[[list[Tensor], slice, bool], Tensor]  # views, this rank's rows, whether others are detached
Found: TypeAlias = dict[str, tuple[float, Tensor, Tensor]]


def losses_and_gradients(
    losses: Mapping[str, Loss], shape: tuple[int, ...], classes: int, rank: int, world: int, detached: bool
) -> Found:
    """Of each loss this rank's value, its gradients on the weights of a linear encoder that three views share (as DDP
    would average them) and on its rows of the first view.

    ``shape``: of a view of all ranks, without the features; the first axis is divided among ranks.
    """
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, *shape, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, classes, generator=generator, dtype=torch.float64).requires_grad_()
    own = slice(rank * shape[0] // world, (rank + 1) * shape[0] // world)
    found = {}
    for name, loss in losses.items():
        views = [view[own] @ weights for view in inputs]
        value = loss(views, own, detached)
        found[name] = (value.item(), *torch.autograd.grad(value, [weights, views[0]], materialize_grads=True))
    return found


def assert_ranks_equal_one(results: list[Found], one: Found) -> None:
    """Mean value and mean gradient on the weights, and all gradients on the rows, are those of one rank."""
    world: Any = len(results)
    for name, (value, on_weights, on_rows) in one.items():
        of_ranks = [result[name] for result in results]
        assert abs(value) > 0.01 and on_weights.norm() > 0.01, name
        assert sum(r[0] for r in of_ranks) / world == pytest.approx(value, rel=1e-12), name
        torch.testing.assert_close(sum(r[1] for r in of_ranks) / world, on_weights)
        torch.testing.assert_close(torch.cat([r[2] for r in of_ranks]) / world, on_rows)

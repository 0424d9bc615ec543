"""collectives between two processes: values, order, and gradients against autograd in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives

pytestmark = pytest.mark.ranks

SHAPE = (3, 4)


def _inputs(world: int, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Each rank's rows ``[W, *shape]`` and each rank's weights on everybody's rows ``[W, W, *shape]``."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn((world, *shape), generator=generator, dtype=torch.float64)
    return draw, torch.randn((world, world, *shape), generator=generator, dtype=torch.float64)


def gather_and_back(rank: int, world: int) -> tuple[Tensor, Tensor]:
    rows, weights = _inputs(world)
    x = rows[rank].clone().requires_grad_()
    everything = collectives.gather(x)
    (everything.pow(2) * weights[rank].flatten(0, 1)).sum().backward()
    assert x.grad is not None
    return everything.detach(), x.grad


def test_gather_has_the_gradient_of_all_ranks(ranks: Any) -> None:
    rows, weights = _inputs(2)
    x = rows.clone().requires_grad_()
    (x.pow(2) * weights).sum().backward()  # broadcast: every rank's use of every row
    for rank, (everything, grad) in enumerate(ranks(gather_and_back)):
        assert torch.equal(everything, rows.flatten(0, 1))
        torch.testing.assert_close(grad, x.grad[rank])


def sum_and_back(rank: int, world: int) -> tuple[Tensor, Tensor]:
    rows, weights = _inputs(world)
    x = rows[rank].clone().requires_grad_()
    total = collectives.sum_over_ranks(x)
    (total.pow(2) * weights[rank, 0]).sum().backward()
    assert x.grad is not None
    return total.detach(), x.grad


def test_sum_has_the_gradient_of_all_ranks(ranks: Any) -> None:
    rows, weights = _inputs(2)
    x = rows.clone().requires_grad_()
    (x.sum(0).pow(2) * weights[:, 0]).sum().backward()
    for rank, (total, grad) in enumerate(ranks(sum_and_back)):
        torch.testing.assert_close(total, rows.sum(0))
        torch.testing.assert_close(grad, x.grad[rank])


def gather_awkward(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, _ = _inputs(world)
    transposed = collectives.gather(rows[rank].T)
    ids = collectives.gather(torch.tensor([2**40 + rank, rank]))
    x = rows[rank].clone().requires_grad_()
    collectives.gather(x).sum().backward()  # the incoming gradient is an expanded scalar
    assert x.grad is not None
    return transposed, ids, x.grad


def test_gather_of_views_and_integers(ranks: Any) -> None:
    rows, _ = _inputs(2)
    for transposed, ids, grad in ranks(gather_awkward):
        assert torch.equal(transposed, torch.cat([rows[0].T, rows[1].T]))
        assert ids.tolist() == [2**40, 0, 2**40 + 1, 1]
        assert torch.equal(grad, torch.full(SHAPE, 2.0, dtype=torch.float64))


def leave_input_alone(rank: int, world: int) -> bool:
    x = torch.full((3,), float(rank))
    collectives.sum_over_ranks(x)
    return bool((x == rank).all())


def test_sum_does_not_touch_its_input(ranks: Any) -> None:
    assert ranks(leave_input_alone) == [True, True]


def objects(rank: int, world: int) -> tuple[list[Any], Any]:
    gathered = collectives.gather_objects({"rank": rank})
    told = collectives.broadcast_object("from 0" if rank == 0 else None)
    collectives.barrier()
    return gathered, told


def test_objects(ranks: Any) -> None:
    assert ranks(objects) == [([{"rank": 0}, {"rank": 1}], "from 0")] * 2


def test_without_a_group_everything_is_itself() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    assert collectives.world() == 1
    assert collectives.rank() == 0
    assert collectives.gather(x) is x
    assert collectives.sum_over_ranks(x) is x
    assert collectives.gather_objects(5) == [5]
    assert collectives.broadcast_object(5) == 5
    collectives.barrier()

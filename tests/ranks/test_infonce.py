"""W ranks with B/W queries each and one queue equal one rank with B, in value and gradient, step after step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.infonce import infonce
from rayssl.models.queue import RowQueue

pytestmark = pytest.mark.ranks

BATCH, DIM, STEPS = 12, 6, 4


def losses_and_gradients(rank: int, world: int) -> tuple[list[float], list[Tensor], Tensor]:
    """Of each step this rank's loss and its gradient on the weights (as DDP would average it); the queue at the end.

    The queue of 30 rows goes round once; queries and keys share a linear encoder, of which keys take no gradient.
    """
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(5, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    queue, losses, gradients = RowQueue(30, DIM).double(), [], []
    for _ in range(STEPS):
        first, second = torch.randn(2, BATCH, 5, generator=generator, dtype=torch.float64)
        own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        keys = (second[own] @ weights).detach()
        loss = infonce(first[own] @ weights, keys, queue.rows, filled=queue.filled, temperature=0.1)
        losses.append(loss.item())
        gradients += torch.autograd.grad(loss, weights)
        queue.push(collectives.gather(keys))
    return losses, gradients, queue.rows


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    values, on_weights, rows = losses_and_gradients(0, 1)
    results = ranks(losses_and_gradients, world=world)
    assert values[0] == 0 and min(values[1:]) > 0.1
    for step in range(STEPS):
        assert sum(r[0][step] for r in results) / world == pytest.approx(values[step], rel=1e-12)
        torch.testing.assert_close(sum(r[1][step] for r in results) / world, on_weights[step])
    for result in results:
        torch.testing.assert_close(result[2], rows)

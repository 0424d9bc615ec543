"""W ranks with B/W utterances each equal one rank with B, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.ntxent import ntxent

pytestmark = pytest.mark.ranks

BATCH, DIM, TEMPERATURE = 12, 6, 0.1


def _problem() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of two views ``[B, 5]`` and the weights ``[5, D]`` of a linear encoder that both share."""
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, BATCH, 5, generator=generator, dtype=torch.float64)
    return views[0], views[1], torch.randn(5, DIM, generator=generator, dtype=torch.float64)


def loss_and_gradients(rank: int, world: int, detached: bool = False) -> tuple[float, Tensor, Tensor]:
    """This rank's loss, its gradient on the weights (as DDP would average it), and on its own rows of view a."""
    first, second, weights = _problem()
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    weights.requires_grad_()
    a, b = first[own] @ weights, second[own] @ weights
    a.retain_grad()
    keys_a, keys_b = collectives.gather(a), collectives.gather(b)
    if detached:
        keys_a, keys_b = keys_a.detach(), keys_b.detach()
    loss = ntxent(a, b, keys_a=keys_a, keys_b=keys_b, offset=own.start, temperature=TEMPERATURE)
    loss.backward()
    assert weights.grad is not None
    assert a.grad is not None
    return loss.item(), weights.grad, a.grad


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    value, on_weights, on_rows = loss_and_gradients(0, 1)
    results = ranks(loss_and_gradients, world=world)
    assert sum(r[0] for r in results) / world == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(sum(r[1] for r in results) / world, on_weights)
    # the mean over ranks is minimised, so the gradient on a rank's own rows is W times their share of it
    torch.testing.assert_close(torch.cat([r[2] for r in results]) / world, on_rows)


def test_a_detached_gather_would_be_seen(ranks: Any) -> None:
    value, on_weights, _ = loss_and_gradients(0, 1)
    results = ranks(loss_and_gradients, True)
    assert sum(r[0] for r in results) / 2 == pytest.approx(value, rel=1e-12)
    assert (sum(r[1] for r in results) / 2 - on_weights).norm() > 0.1 * on_weights.norm()

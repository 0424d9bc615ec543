"""W ranks with B/W utterances each equal one rank with B, in value and gradient; the codes are of all ranks' rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.swav import swav

pytestmark = pytest.mark.ranks

BATCH, DIM, PROTOTYPES, PAST = 12, 6, 9, 5


def loss_and_gradients(rank: int, world: int, alone: bool = False) -> tuple[float, Tensor, Tensor, Tensor]:
    """This rank's loss, its gradients on encoder and prototypes (as DDP would average them), and on its rows of view a.

    Five rows of a queue take part in the codes. ``alone``: codes of this rank's rows and the queue only.
    """
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, BATCH, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    prototypes = torch.randn(DIM, PROTOTYPES, generator=generator, dtype=torch.float64).requires_grad_()
    past = torch.randn(PAST, DIM, generator=generator, dtype=torch.float64) / 9
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    a, b = (torch.nn.functional.normalize(view[own] @ weights, dim=1) for view in (first, second))
    a.retain_grad()
    rows = (x.detach() if alone else collectives.gather(x.detach()) for x in (a, b))
    keys_a, keys_b = ((torch.cat([x, past]) @ prototypes).detach() for x in rows)
    loss = swav(
        a @ prototypes,
        b @ prototypes,
        keys_a=keys_a,
        keys_b=keys_b,
        offset=0 if alone else own.start,
        temperature=0.1,
        epsilon=0.5,
        iterations=3,
    )
    loss.backward()
    assert weights.grad is not None and prototypes.grad is not None and a.grad is not None
    return loss.item(), weights.grad, prototypes.grad, a.grad


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    value, on_weights, on_prototypes, on_rows = loss_and_gradients(0, 1)
    results = ranks(loss_and_gradients, world=world)
    assert sum(r[0] for r in results) / world == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(sum(r[1] for r in results) / world, on_weights)
    torch.testing.assert_close(sum(r[2] for r in results) / world, on_prototypes)
    torch.testing.assert_close(torch.cat([r[3] for r in results]) / world, on_rows)


def test_codes_of_each_ranks_own_rows_would_be_seen(ranks: Any) -> None:
    value, on_weights, *_ = loss_and_gradients(0, 1)
    results = ranks(loss_and_gradients, True)
    assert abs(sum(r[0] for r in results) / 2 - value) > 1e-3
    assert (sum(r[1] for r in results) / 2 - on_weights).norm() > 0.05 * on_weights.norm()

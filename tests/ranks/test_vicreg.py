"""W ranks with B/W utterances each equal one rank with B, in each term's value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.vicreg import vicreg

pytestmark = pytest.mark.ranks

BATCH, DIM = 12, 6


def terms_and_gradients(rank: int, world: int, detached: bool = False) -> list[tuple[float, Tensor, Tensor]]:
    """Of each term this rank's value, its gradient on the weights (as DDP would average it) and on its rows of view a.

    ``detached``: rows of all ranks without gradient.
    """
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, BATCH, 5, generator=generator, dtype=torch.float64)
    weights = (0.4 * torch.randn(5, DIM, generator=generator, dtype=torch.float64)).requires_grad_()
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    a, b = first[own] @ weights, second[own] @ weights
    keys_a, keys_b = collectives.gather(a), collectives.gather(b)
    if detached:
        keys_a, keys_b = keys_a.detach().requires_grad_(), keys_b.detach()
    terms = vicreg(a, b, keys_a=keys_a, keys_b=keys_b)
    found = []
    for term in terms:
        on_weights, on_rows = torch.autograd.grad(term, [weights, a], retain_graph=True, materialize_grads=True)
        found.append((term.item(), on_weights, on_rows))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    results = ranks(terms_and_gradients, world=world)
    for number, (value, on_weights, on_rows) in enumerate(terms_and_gradients(0, 1)):
        terms = [result[number] for result in results]
        assert value > 0.01 and on_weights.norm() > 0.01
        assert sum(t[0] for t in terms) / world == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(sum(t[1] for t in terms) / world, on_weights)
        torch.testing.assert_close(torch.cat([t[2] for t in terms]) / world, on_rows)


def test_a_detached_gather_would_be_seen(ranks: Any) -> None:
    results = ranks(terms_and_gradients, True)
    for number, (value, on_weights, _) in list(enumerate(terms_and_gradients(0, 1)))[1:]:
        terms = [result[number] for result in results]
        assert sum(t[0] for t in terms) / 2 == pytest.approx(value, rel=1e-12)
        assert (sum(t[1] for t in terms) / 2 - on_weights).norm() > 0.1 * on_weights.norm()

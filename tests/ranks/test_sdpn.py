"""W ranks with B/W utterances each equal one rank with B, in value and gradient of each term of SDPN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.sdpn import balanced, decorrelation, koleo, prediction, unevenness

pytestmark = pytest.mark.ranks

BATCH, CROPS, DIM, PROTOTYPES = 12, 3, 6, 9


def terms_and_gradients(rank: int, world: int, alone: bool = False) -> list[tuple[float, Tensor]]:
    """Of each term this rank's value and its gradient on the weights of a linear encoder, as DDP would average it.

    ``alone``: from this rank's rows only.
    """
    generator = torch.Generator().manual_seed(3)
    crops = torch.randn(CROPS, BATCH, 5, generator=generator, dtype=torch.float64)
    teachers = torch.randn(BATCH, PROTOTYPES, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    prototypes = torch.randn(DIM, PROTOTYPES, generator=generator, dtype=torch.float64)
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    embedded = crops[:, own] @ weights
    keys = teachers[own] if alone else collectives.gather(teachers[own])
    codes = balanced(keys, temperature=0.5, iterations=3)
    found = prediction(embedded @ prototypes, codes if alone else codes[own], temperature=2.0)
    mean = found.mean if alone else collectives.sum_over_ranks(found.mean) / world
    every = embedded[0] if alone else collectives.gather(embedded[0])
    near = koleo(embedded[0], every, offset=0 if alone else own.start)
    terms = [found.loss, unevenness(mean), near, decorrelation(every)]
    return [(term.item(), torch.autograd.grad(term, weights, retain_graph=True)[0]) for term in terms]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    results = ranks(terms_and_gradients, world=world)
    for number, (value, gradient) in enumerate(terms_and_gradients(0, 1)):
        terms = [result[number] for result in results]
        assert sum(t[0] for t in terms) / world == pytest.approx(value, rel=1e-10)
        torch.testing.assert_close(sum(t[1] for t in terms) / world, gradient)


def test_terms_of_each_ranks_own_rows_would_be_seen(ranks: Any) -> None:
    results = ranks(terms_and_gradients, True)
    for number, (_, gradient) in enumerate(terms_and_gradients(0, 1)):
        mean = sum(result[number][1] for result in results) / 2
        assert (mean - gradient).norm() > 0.02 * gradient.norm()

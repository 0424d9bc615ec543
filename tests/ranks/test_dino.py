"""DINO over W ranks with B/W utterances each equals one rank with B: value, gradient, and the centre of every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.dino import dino, mean_logits, moved_centre

pytestmark = pytest.mark.ranks

BATCH, STEPS = 12, 3


def steps(rank: int, world: int, alone: bool = False) -> list[tuple[float, Tensor, Tensor]]:
    """Of each step this rank's loss, its gradient on the weights of a linear student, and the centre afterwards."""
    generator = torch.Generator().manual_seed(3)
    crops = torch.randn(STEPS, 4, BATCH, 5, generator=generator, dtype=torch.float64)
    taught, teaching = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    centre, results = torch.zeros(6, dtype=torch.float64), []
    for views in crops[:, :, own]:
        weights = taught.clone().requires_grad_()
        teachers = [view @ teaching for view in views[:2]]
        loss = dino(
            [view @ weights for view in views],
            teachers,
            centre=centre,
            student_temperature=0.5,
            teacher_temperature=0.2,
        )
        loss.backward()
        mean = mean_logits(teachers)
        if not alone:
            mean = collectives.sum_over_ranks(mean) / world
        centre = moved_centre(centre, mean, momentum=0.5)
        assert weights.grad is not None
        results.append((loss.item(), weights.grad, centre))
    return results


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    expected = steps(0, 1)
    results = ranks(steps, world=world)
    for number, (value, gradient, centre) in enumerate(expected):
        found = [result[number] for result in results]
        assert sum(loss for loss, _, _ in found) / world == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(sum(grad for _, grad, _ in found) / world, gradient)
        torch.testing.assert_close(found[0][2], centre)
        assert all(torch.equal(mine, found[0][2]) for _, _, mine in found)


def test_a_centre_of_each_rank_would_be_seen(ranks: Any) -> None:
    expected = steps(0, 1)
    results = ranks(steps, True)
    assert not torch.equal(results[0][0][2], results[1][0][2])
    assert sum(result[0][0] for result in results) / 2 == pytest.approx(expected[0][0], rel=1e-12)
    assert sum(result[1][0] for result in results) / 2 != pytest.approx(expected[1][0], rel=1e-3)

"""The losses with labels and pseudo-labels: W ranks with B/W rows each equal one rank with B, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.aggregation import joint, mutual_information
from rayssl.losses.balance import adjusted_cross_entropy, log_prior
from rayssl.losses.pseudolabel import alignment, consistency, semantic_logits
from rayssl.losses.supcon import supcon
from tests.ranks import linear

pytestmark = pytest.mark.ranks

BATCH, CLASSES = 12, 4
LABELS = torch.tensor([0, 0, -1, 3, 0, 1, -1, 1, 0, 3, 3, 0])  # classes of rows on several ranks, and on one alone
PRESENT = torch.tensor([True, True, False, True])


def _supcon(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    a, b = views[:2]
    keys_a, keys_b = collectives.gather(a), collectives.gather(b)
    if detached:
        keys_a, keys_b = keys_a.detach(), keys_b.detach()
    labels = LABELS[own]
    keys = {"keys_a": keys_a, "keys_b": keys_b, "key_labels": collectives.gather(labels)}
    return supcon(a, b, labels, **keys, offset=own.start, temperature=0.2)


def _aggregation(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    mine = joint(*(view.softmax(dim=1) for view in views))
    total = mine if detached else collectives.sum_over_ranks(mine) / collectives.world()
    return -mutual_information(total)


def _consistency(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    return consistency(views[0], LABELS[own], LABELS[own] >= 0)


def _alignment(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    prototypes = torch.linspace(-1, 1, CLASSES**2, dtype=torch.float64).reshape(CLASSES, CLASSES).sin()
    weak, strong = (semantic_logits(view, prototypes, PRESENT, temperature=0.5) for view in views[:2])
    return alignment(strong, weak.softmax(dim=1), PRESENT)


def _balance(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    prior = log_prior(torch.tensor([50, 9, 0, 3]))
    return adjusted_cross_entropy(views[0], LABELS[own].clamp_min(0), log_prior=prior, tau=1.0)


LOSSES: dict[str, linear.Loss] = {
    "supcon": _supcon,
    "aggregation": _aggregation,
    "consistency": _consistency,
    "alignment": _alignment,
    "balance": _balance,
}


def losses_and_gradients(rank: int, world: int, detached: bool = False) -> linear.Found:
    """``detached``: other ranks' rows are given no gradient, or the joint is this rank's alone."""
    return linear.losses_and_gradients(LOSSES, (BATCH,), CLASSES, rank, world, detached)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    linear.assert_ranks_equal_one(ranks(losses_and_gradients, world=world), losses_and_gradients(0, 1))


def test_rows_without_gradient_and_a_joint_of_each_rank_would_be_seen(ranks: Any) -> None:
    results = ranks(losses_and_gradients, True)
    whole = losses_and_gradients(0, 1)
    assert sum(r["supcon"][0] for r in results) / 2 == pytest.approx(whole["supcon"][0], rel=1e-12)
    assert abs(sum(r["aggregation"][0] for r in results) / 2 - whole["aggregation"][0]) > 1e-3
    for name in ("supcon", "aggregation"):
        on_weights = whole[name][1]
        assert (sum(r[name][1] for r in results) / 2 - on_weights).norm() > 0.05 * on_weights.norm(), name

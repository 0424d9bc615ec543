"""The losses of sleep staging: W ranks with their share of the sequences equal one rank, in value and gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.losses.ccssl import ccssl
from rayssl.losses.noise_consistency import noise_consistency
from rayssl.losses.sequential import sequential_consistency
from rayssl.losses.ssc import ssc
from rayssl.losses.staging import sequence_cross_entropy
from rayssl.methods.semi import global_mean
from tests.ranks import linear

pytestmark = pytest.mark.ranks

SEQUENCES, EPOCHS, CLASSES = 6, 3, 4
# sequences whose labels and padding are spread unevenly over ranks; the last one has no scored epoch
LABELS = torch.tensor([[0, 1, 1], [2, -1, 0], [1, 1, 3], [-1, -1, 1], [0, 2, -1], [-1, -1, -1]])
VALID = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.5])


def _gathered(x: Tensor, detached: bool) -> Tensor:
    found = collectives.gather(x)
    if not detached:
        return found
    start = collectives.rank() * len(x)
    others = found.detach()
    return torch.cat([others[:start], x, others[start + len(x) :]])


def _sequential(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    return sequential_consistency(views[0], views[1], real=VALID[own])


def _ccssl(views: list[Tensor], own: slice, detached: bool, padded: bool = False) -> Tensor:
    a, b = (view.flatten(0, 1) for view in views[:2])
    pseudo = views[2].detach().mul(3).softmax(-1).flatten(0, 1)
    keys = {"keys_a": _gathered(a, detached), "keys_b": _gathered(b, detached)}
    settings: dict[str, Any] = {"offset": own.start * EPOCHS, "temperature": 0.2, "push": 0.5}
    if padded:
        settings |= {"valid": VALID[own].flatten(), "key_valid": collectives.gather(VALID[own].flatten())}
    return ccssl(a, b, pseudo, **keys, key_pseudo=collectives.gather(pseudo), **settings)


def _ssc(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    candidates = _gathered(torch.stack(views[:2], dim=1), detached).flatten(0, 2)
    predicted = collectives.gather(views[2].detach().mul(3).softmax(-1))[:, None].expand(-1, 2, -1, -1).flatten(0, 2)
    valid = collectives.gather(VALID[own])[:, None].expand(-1, 2, -1).flatten()
    anchors = views[2].flatten(0, 1)
    # an epoch that nobody has scored has the class -1, which does not count
    return global_mean(
        *ssc(anchors, LABELS[own].flatten(), candidates, predicted, temperature=0.2, threshold=0.4, valid=valid)
    )


def _noise(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    return global_mean(*noise_consistency(views[0], views[1], valid=VALID[own]))


def _staging(views: list[Tensor], own: slice, detached: bool) -> Tensor:
    return global_mean(*sequence_cross_entropy(views[0], LABELS[own], weights=WEIGHTS, valid=VALID[own]))


LOSSES: dict[str, linear.Loss] = {
    "sequential": _sequential,
    "ccssl": _ccssl,
    "ccssl_padded": partial(_ccssl, padded=True),
    "ssc": _ssc,
    "noise": _noise,
    "staging": _staging,
}


def losses_and_gradients(rank: int, world: int, detached: bool = False) -> linear.Found:
    """``detached``: other ranks' rows are given no gradient."""
    return linear.losses_and_gradients(LOSSES, (SEQUENCES, EPOCHS), CLASSES, rank, world, detached)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    linear.assert_ranks_equal_one(ranks(losses_and_gradients, world=world), losses_and_gradients(0, 1))


def test_a_detached_gather_would_be_seen(ranks: Any) -> None:
    results = ranks(losses_and_gradients, True)
    whole = losses_and_gradients(0, 1)
    for name in ("ccssl", "ccssl_padded", "ssc"):
        value, on_weights, _ = whole[name]
        assert sum(r[name][0] for r in results) / 2 == pytest.approx(value, rel=1e-12), name
        assert (sum(r[name][1] for r in results) / 2 - on_weights).norm() > 0.05 * on_weights.norm(), name

"""The gate over W ranks: every rank leaves out by the losses of all utterances, as one rank does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rayssl.losses.gate import threshold
from rayssl.methods.base import Recall
from rayssl.methods.pseudo_speakers import PseudoSpeakers, PseudoSpeakersConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, batch_of, facts

pytestmark = pytest.mark.ranks

BATCH = 24


def limit_and_losses(rank: int, world: int) -> tuple[float, list[float]]:
    """After a step in which half of the labels are right: what the next epoch leaves out, and the losses behind it."""
    torch.manual_seed(0)
    config = PseudoSpeakersConfig.model_validate({"clusters": 4, "gate_after": 1, "scale": 10.0, "correct_after": None})
    method = PseudoSpeakers(config, build_encoder(EncoderConfig.model_validate(ENCODER)), facts(utterances=BATCH))
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(16)[:4])
    own = torch.arange(rank * BATCH // world, (rank + 1) * BATCH // world)
    noise = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(1))
    rows = torch.eye(16)[own % 4] + 0.05 * noise[own]
    labels = torch.where(own % 2 == 0, own % 4, (own + 1) % 4)
    batch = replace(batch_of(len(own)), ids=own)
    method.step({"anchor": rows}, batch, Recall(labels[:, None].float(), own >= 0))
    method.begin_epoch(1, None)
    return method.limit.item(), method.losses.tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    limit, losses = limit_and_losses(0, 1)
    assert limit == pytest.approx(threshold(torch.tensor(losses).numpy())) and 0 < limit < math.inf
    assert sum(loss <= limit for loss in losses) == BATCH / 2
    for found, seen in ranks(limit_and_losses, world=world):
        assert found == pytest.approx(limit, rel=1e-5) and seen == pytest.approx(losses, rel=1e-5)

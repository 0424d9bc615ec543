"""Encoders of nights: two ranks with half of the sequences each compute and learn what one rank does with all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from tests.models.night_encoders import night, night_encoder

pytestmark = pytest.mark.ranks
Result = dict[str, Any]


def _step(name: str, rows: slice, share: float, sync: bool) -> Result:
    """``share`` of the sum over a rank's rows, so that the mean over ranks is the whole batch's."""
    encoder = night_encoder(name, sync=sync).double()
    pictures = encoder.frontend.pictures(night(3, rows=4))[rows]
    keys = keys_torch(fold(1), torch.arange(4))[rows]
    features = encoder.frontend.scaled(pictures).double()
    z, _ = encoder.backbone.sequence(features, keys)
    cotangent = torch.randn(4, *z.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)[rows]
    (share * (z * cotangent).sum()).backward()
    gradients = {name: weight.grad for name, weight in encoder.named_parameters()}
    return {"z": z.detach(), "gradients": gradients, "state": dict(encoder.named_buffers())}


def _rank_step(rank: int, world: int, name: str, sync: bool) -> Result:
    return _step(name, slice(2 * rank, 2 * rank + 2), float(world), sync)


@pytest.mark.parametrize("name", ["soundsleepnet", "sleepformer"])
def test_two_ranks_are_one(ranks: Callable[..., list[Result]], name: str) -> None:
    whole, results = _step(name, slice(0, 4), 1.0, False), ranks(_rank_step, name, True, world=2)
    torch.testing.assert_close(torch.cat([result["z"] for result in results]), whole["z"])
    for weight, expected in whole["gradients"].items():
        found = sum(result["gradients"][weight] for result in results) / 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=weight)
    for result in results:
        torch.testing.assert_close(result["state"], whole["state"])


def test_unsynchronised_ranks_differ(ranks: Callable[..., list[Result]]) -> None:
    results = ranks(_rank_step, "sleepformer", False, world=2)
    z = torch.cat([result["z"] for result in results])
    assert not torch.allclose(z, _step("sleepformer", slice(0, 4), 1.0, False)["z"], atol=0.01)

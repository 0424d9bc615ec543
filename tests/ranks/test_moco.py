"""Keys that are computed in another order over the ranks: whose statistics they have, and that each finds its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.methods.base import View
from rayssl.methods.moco import _SHUFFLE, MoCo, MoCoConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.models.norm import set_sync
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch, uniform_torch
from tests.runs import ENCODER, views_config

pytestmark = pytest.mark.ranks
ROWS = 12


def model(sync: bool) -> MoCo:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    method = MoCo(MoCoConfig(queue=20, shuffle=True, symmetric=True), encoder, views_config())
    set_sync(method, sync)
    return method


def views() -> tuple[View, View]:
    """Rows whose loudness and noise differ from half to half, so that the statistics of a rank show."""
    generator = torch.Generator().manual_seed(1)
    waves = 0.1 * torch.randn(2, ROWS, 3200, generator=generator)
    waves[:, ROWS // 2 :] = waves[:, ROWS // 2 :].cumsum(dim=2) * 0.1
    anchor, positive = (View(wave, keys_torch(fold(n), torch.arange(ROWS))) for n, wave in enumerate(waves))
    return anchor, positive


def keys(rank: int, world: int, sync: bool) -> dict[str, Tensor]:
    own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    anchor, positive = (View(view.wave[own], None if view.keys is None else view.keys[own]) for view in views())
    out = model(sync)({"anchor": anchor, "positive": positive})
    return {name: value.detach() for name, value in out.items()}


@pytest.mark.parametrize("world", [2, 3])
def test_with_common_statistics_ranks_equal_one_rank(ranks: Any, world: int) -> None:
    whole, parts = keys(0, 1, True), ranks(keys, True, world=world)
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-3, atol=1e-4)


def test_a_rank_normalises_rows_of_all_ranks(ranks: Any) -> None:
    """Each half of the drawn order has its own statistics; each key comes back to its query's place."""
    parts = ranks(keys, False, world=2)
    for name, view in zip(("other_key", "key"), views(), strict=True):
        assert view.keys is not None
        order = uniform_torch(view.keys, _SHUFFLE).argsort()
        halves = order.chunk(2)
        assert all({int(row) // (ROWS // 2) for row in half} == {0, 1} for half in halves)
        expected = torch.zeros(ROWS, 16)
        for half in halves:
            expected[half] = model(False).key_encoder(view.wave[half], view.keys[half]).detach()
        found = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, model(False).key_encoder(view.wave, view.keys), atol=1e-2)

"""Two ranks whose compiled encoders share the statistics of batch normalisation compute as without a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.schema import parse
from rayssl.training.kernels import compile_each

pytestmark = pytest.mark.ranks
Result = list[torch.Tensor]


def _trained(rank: int, world: int, last: bool, compiled: bool) -> Result:
    torch.manual_seed(0)
    backbone = {
        "name": "ecapa",
        "channels": 8,
        "scale": 2,
        "embedding_dim": 6,
        "attention_channels": 8,
        "se_channels": 8,
    }
    encoder = build_encoder(parse(EncoderConfig, {"backbone": backbone}, "test"), sync_batchnorm=True)
    encoder.backbone.channels_last = last
    if compiled:
        compile_each(encoder, backend="aot_eager")
    wave = 0.1 * torch.randn(4, 4000, generator=torch.Generator().manual_seed(rank))
    try:
        out = encoder(wave)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    finally:
        torch._dynamo.reset()
    return [out.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)]


def test_compiled_ranks_are_as_the_others(ranks: Callable[..., list[Any]]) -> None:
    plain = ranks(_trained, False, False, world=2, timeout=300)
    for last in (False, True):
        for one, other in zip(plain, ranks(_trained, last, True, world=2, timeout=300), strict=True):
            largest = max(value.abs().max() for value in one)
            for expected, found in zip(one, other, strict=True):
                torch.testing.assert_close(found / largest, expected / largest, rtol=1e-4, atol=1e-5)

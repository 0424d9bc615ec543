"""Two ranks with compiled encoders compute as without a compiler: common statistics, and whole trainings in DDP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
import torch

from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.schema import parse
from rayssl.training.kernels import compile_each
from tests.ranks.test_training import LEARNERS, METHODS, OVERRIDES, trained
from tests.runs import FEW, SPLITS, experiment, write_corpus

pytestmark = [pytest.mark.ranks, pytest.mark.slow]  # each rank compiles
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
    plain = ranks(_trained, False, False, world=2, timeout=900)
    for last in (False, True):
        for one, other in zip(plain, ranks(_trained, last, True, world=2, timeout=900), strict=True):
            largest = max(value.abs().max() for value in one)
            for expected, found in zip(one, other, strict=True):
                torch.testing.assert_close(found / largest, expected / largest, rtol=1e-4, atol=1e-5)


def _fitted(rank: int, world: int, corpus: str, method: str, compiled: bool) -> tuple[list[float], int]:
    """The losses of a training in DDP with small buckets, and into how many graphs they divided the first encoder."""
    from torch._dynamo.backends.distributed import DDPOptimizer

    divided: list[int] = []

    def compile_all(method: torch.nn.Module, *_: object, **__: object) -> bool:
        if compiled:
            compile_each(method, backend="aot_eager")
        return compiled

    def divides(self: Any, *arguments: Any) -> Any:
        made = dividing(self, *arguments)
        divided.append(len(self.buckets))
        return made

    dividing, ddp = DDPOptimizer.compile_fn, torch.nn.parallel.DistributedDataParallel
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="rank-")))
        patched = (
            ("rayssl.experiment.build.compile_encoders", compile_all),
            ("rayssl.collectives.DistributedDataParallel", partial(ddp, bucket_cap_mb=0.002)),
            ("torch.distributed._DEFAULT_FIRST_BUCKET_BYTES", 1000),
        )
        for name, value in patched:
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch.object(DDPOptimizer, "compile_fn", divides))
        stack.callback(torch._dynamo.reset)
        few = (*FEW, "training.epoch_steps=4") if method in LEARNERS else ()
        changes = (*OVERRIDES, f"ray.workers={world}", *few)
        result = trained(experiment(folder, Path(corpus), *changes, method=METHODS[method]), rank, world)
    return [step["loss"] for step in result["steps"]], max(divided, default=0)


@pytest.mark.parametrize("method", ["ssps", "dino", "daso"])
def test_in_ddp_a_compiled_training_is_the_same(ranks: Callable[..., list[Any]], method: str, tmp_path: Path) -> None:
    """DDP's buckets divide the encoder into graphs of its own, so that sending and computing overlap."""
    write_corpus(tmp_path, splits=SPLITS)
    (plain, _), _ = ranks(_fitted, str(tmp_path), method, False, world=2, timeout=900)
    (found, graphs), _ = ranks(_fitted, str(tmp_path), method, True, world=2, timeout=900)
    assert graphs > 1 and len(plain) == 12
    assert found == pytest.approx(plain, rel=1e-4)

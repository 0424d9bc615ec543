"""What rank 0 alone has heard all ranks do, at the same step, whatever their clocks say."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.parallel import DistributedDataParallel

from rayssl.training import checkpoint
from rayssl.training.stopping import Stopping
from tests.runs import SSPS_METHOD, batches, build, experiment, write_corpus

pytestmark = pytest.mark.ranks


def _agreed(rank: int, world: int, rung_at: int) -> int:
    """The call at which this rank is told to leave."""
    calls = 0
    stopping = Stopping(lambda: rank == 0 and calls >= rung_at, every_s=0.02)
    while True:
        calls += 1
        time.sleep(0.001 * (1 + rank))
        if stopping.agreed():
            return calls


def test_all_leave_at_the_same_call(ranks: Callable[..., list[int]]) -> None:
    for rung_at in (1, 2, 50):
        first, second = ranks(_agreed, rung_at, world=2)
        assert first == second >= rung_at


def _stopped(rank: int, world: int, corpus: str) -> tuple[int, list[int]]:
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        settings = experiment(Path(folder), Path(corpus), f"ray.workers={world}", method=SSPS_METHOD)
        loop = build(settings, wrap=DistributedDataParallel)
        loop.state.stopping = Stopping(lambda: rank == 0 and loop.step >= 4, every_s=0.0)
        loop.fit(batches(settings, loop))
        return loop.step, checkpoint.steps(settings.run) if rank == 0 else []


def test_a_loop_of_two_ranks_saves_where_both_leave(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (first, saved), (second, _) = ranks(_stopped, str(tmp_path), world=2)
    assert first == second == saved[-1] == 5  # told before the fifth step, they leave after it

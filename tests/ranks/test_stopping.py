"""What rank 0 alone has heard all ranks do, at the same step, whatever their clocks say."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.training import checkpoint
from rayssl.training.stopping import Stopping
from tests.runs import SSPS_METHOD, batches, build, experiment, remembered, write_corpus

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
        loop = build(settings)
        loop.state.stopping = Stopping(lambda: rank == 0 and loop.step >= 4, every_s=0.0)
        loop.fit(batches(settings, loop))
        return loop.step, checkpoint.steps(settings.run) if rank == 0 else []


def test_a_loop_of_two_ranks_saves_where_both_leave(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (first, saved), (second, _) = ranks(_stopped, str(tmp_path), world=2)
    assert first == second == saved[-1] == 5  # told before the fifth step, they leave after it


def _filled(rank: int, world: int, corpus: str, stop: int) -> dict[str, Any]:
    """What two ranks without common statistics have in the end; with ``stop`` they resume after so many steps."""
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        method = {**SSPS_METHOD, "references": "fill"}
        # rank 0's folder: rank 1 gets the state from it
        settings = experiment(Path(folder), Path(corpus), f"ray.workers={world}", method=method)
        for steps in (stop, 0) if stop else (0,):
            loop = build(settings)
            if steps:
                loop.state.stopping = Stopping(lambda steps=steps, loop=loop: loop.step >= steps, every_s=0.0)  # type: ignore[misc]
            loop.fit(batches(settings, loop))
            if loop.state.log is not None:
                loop.state.log.close()
        weights = {name: value.numpy().copy() for name, value in loop.state.method.state_dict().items()}
        return {"steps": loop.step, **weights, **remembered(loop)}


@pytest.mark.parametrize("stop", [3, 7])
def test_resumed_before_the_memory_is_filled_two_ranks_do_the_same(
    ranks: Callable[..., list[Any]], tmp_path: Path, stop: int
) -> None:
    """Each rank has its own statistics of batch normalisation, and a checkpoint has those of rank 0."""
    write_corpus(tmp_path)
    whole, _ = ranks(_filled, str(tmp_path), 0, world=2)
    resumed, _ = ranks(_filled, str(tmp_path), stop, world=2)
    assert whole.keys() == resumed.keys()
    differ = [name for name, value in whole.items() if name != "counters" and not np.array_equal(value, resumed[name])]
    assert differ == []

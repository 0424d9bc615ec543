"""The pool itself: results in order, the same processes again, failures and hangs that reach the test."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from rayssl import collectives

pytestmark = pytest.mark.ranks


def where(rank: int, world: int, base: int) -> tuple[int, int, int, int]:
    return base + rank, world, collectives.rank(), collectives.world()


def pid(rank: int, world: int) -> int:
    return os.getpid()


def fail_in_rank_1(rank: int, world: int) -> None:
    if rank == 1:
        raise KeyError("only here")
    collectives.barrier()


def hang_in_rank_0(rank: int, world: int) -> None:
    if rank == 0:
        time.sleep(60)


def die_in_rank_0(rank: int, world: int) -> None:
    if rank == 0:
        os._exit(3)


def tensor(rank: int, world: int, x: torch.Tensor) -> torch.Tensor:
    return x * rank


def test_results_in_rank_order(ranks: Any) -> None:
    assert ranks(where, 10) == [(10, 2, 0, 2), (11, 2, 1, 2)]
    assert [x.tolist() for x in ranks(tensor, torch.ones(2))] == [[0, 0], [1, 1]]


def test_processes_stay(ranks: Any) -> None:
    first = ranks(pid)
    assert ranks(pid) == first == ranks.pids()
    assert os.getpid() not in first


def test_exception_is_raised_here_with_its_traceback(ranks: Any) -> None:
    with pytest.raises(KeyError, match="only here") as caught:
        ranks(fail_in_rank_1)
    assert "in rank 1" in caught.value.__notes__[0]
    assert "fail_in_rank_1" in caught.value.__notes__[0]
    assert ranks(where, 0)[1][0] == 1  # rank 0 had been left in the barrier: the pool is a new one


@pytest.mark.parametrize(("function", "error"), [(hang_in_rank_0, TimeoutError), (die_in_rank_0, RuntimeError)])
def test_hang_and_death_end_the_pool(ranks: Any, function: Any, error: type[Exception]) -> None:
    old = ranks(pid)
    with pytest.raises(error, match="rank 0"):
        ranks(function, timeout=1.0)
    for number in old:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    assert set(ranks(pid)).isdisjoint(old)

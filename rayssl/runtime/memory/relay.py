"""One call a node: where several ranks train on a node, an actor of that node joins their calls to the memory.

With W ranks on n nodes the memory answers n calls a step instead of W. The answers are the same: strict, the memory
applies the parts of a call in rank order, whoever brings them. The ranks of a node hand their rows over in its shared
memory, and they are at the same step anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays


class Part(NamedTuple):
    """What one rank says in an exchange; see `rayssl.training.context.MemoryClient.exchange`."""

    rank: int
    remember: Sequence[RememberArrays]
    ids: np.ndarray | None
    epoch: int


Send: TypeAlias = Callable[[int, Sequence[Part]], list[RecallArrays | None]]
"""Makes the ``call``-th exchange (from 1) of some ranks; returns their answers in the same order."""


class Relay:
    """Joins each call of ``ranks``, which are all of one node, and makes it by ``send``, one after the other."""

    def __init__(self, ranks: Sequence[int], send: Send) -> None:
        self._ranks, self._send = sorted(ranks), send
        self._calls: dict[int, dict[int, tuple[Part, asyncio.Future[RecallArrays | None]]]] = {}
        self._began: dict[int, float] = {}
        self._next = 1
        self._thread = ThreadPoolExecutor(1)

    async def exchange(
        self, call: int, rank: int, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int
    ) -> RecallArrays | None:
        """The ``call``-th exchange (from 1) of ``rank``, together with that of the other ranks of the node."""
        done: asyncio.Future[RecallArrays | None] = asyncio.get_running_loop().create_future()
        self._calls.setdefault(call, {})[rank] = Part(rank, remember, ids, epoch), done
        self._began.setdefault(call, time.monotonic())
        while len(self._calls.get(self._next, ())) == len(self._ranks):  # Ray may bring a later call first
            self._forward(self._next)
            self._next += 1
        return await done

    async def missing(self) -> dict[int, float]:
        """The ranks of the node that its others wait for, and for how many seconds."""
        if not self._calls:
            return {}
        call = min(self._calls)
        waited = time.monotonic() - self._began[call]
        return {rank: waited for rank in self._ranks if rank not in self._calls[call]}

    def _forward(self, call: int) -> None:
        given = self._calls.pop(call)
        del self._began[call]
        parts = [given[rank] for rank in self._ranks]
        sent = asyncio.get_running_loop().run_in_executor(self._thread, self._send, call, [part for part, _ in parts])

        def deliver(sent: asyncio.Future[list[RecallArrays | None]]) -> None:
            error = sent.exception()
            for place, (_, done) in enumerate(parts):
                if error is None:
                    done.set_result(sent.result()[place])
                else:
                    done.set_exception(error)

        sent.add_done_callback(deliver)


def start(name: str, node: str, ranks: Sequence[int], send: Send) -> Any:
    """The relay called ``name`` of ``ranks`` on ``node``; it is alive."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    relay = (
        ray.remote(Relay)
        .options(name=name, num_cpus=0, max_concurrency=max(1000, 8 * len(ranks)), scheduling_strategy=there)
        .remote(list(ranks), send)
    )
    ray.get(relay.missing.remote())
    return relay


def by_node(nodes: Sequence[str]) -> dict[str, list[int]]:
    """The ranks that share a relay, by node; ``nodes`` has the node of each rank.

    Only nodes of several ranks have one, and none has where all ranks are on one node: the memory is as near then.
    """
    if len(set(nodes)) < 2:
        return {}
    groups = {node: [rank for rank, own in enumerate(nodes) if own == node] for node in nodes}
    return {node: ranks for node, ranks in groups.items() if len(ranks) > 1}

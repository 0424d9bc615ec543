"""The memory over several actors: one holds the index, the others, spread over the nodes, the rows.

A call of a rank goes to the index first, which decides the slots of the rows to keep and of the rows to return. Then it
goes to all stores at once, each with its part of the rows. A thread of the client does this while the rank computes.

Strict: the index applies what all ranks remember in rank order, and every store does the same, before it answers any
rank. So a store returns exactly the rows that the index has decided on, for any number of stores. Ahead: two calls may
reach a store in another order than the index. A store knows whose row is in a slot; where it is not the expected one,
the anchor counts as not found.

The sampling "nn" takes three more rounds: the anchors' references, their nearest in each store, and the rows. Each
store does B * |Q'| / S * D multiplications, and receives N / 8 bytes that say which utterances may be found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

import numpy as np
import ray

from rayssl import collectives
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory.actor import concurrency, options
from rayssl.runtime.memory.asking import Watch, answer_on_all_ranks, in_steps, snapshot_of
from rayssl.runtime.memory.relay import Part
from rayssl.runtime.memory.rounds import get
from rayssl.runtime.memory.sending import Exchanger
from rayssl.runtime.memory.servers import IndexServer, StoreServer
from rayssl.training.pieces import Records

_Call: TypeAlias = tuple[Future[RecallArrays | None], Callable[[], list[RecallArrays | None]]]


def start(settings: MemorySettings, world: int, config: MemoryConfig, prefix: str) -> tuple[Any, list[Any]]:
    """The actors of the index and of all stores for ``world`` ranks, alive; named ``prefix`` and ``prefix``:shard."""
    common = settings, world, config.sync == "strict"
    stores = [
        ray.remote(StoreServer)
        .options(**options(config, f"{prefix}:{shard}", world), scheduling_strategy="SPREAD")
        .remote(*common, shard, config.shards)
        for shard in range(config.shards)
    ]
    declared = {"num_cpus": config.cpus, "name": prefix, "max_concurrency": concurrency(world)}
    index = ray.remote(IndexServer).options(**declared, scheduling_strategy="DEFAULT").remote(*common, stores)
    ray.get([index.metrics.remote(0), *(store.lost_rows.remote() for store in stores)])
    return index, stores


class ShardedMemory:
    """The loop's `MemoryClient` of an index and ``config.shards`` stores; made on all ranks together."""

    def __init__(self, settings: MemorySettings, config: MemoryConfig, label: str) -> None:
        self.calls, self._ahead = 0, config.ahead
        prefix = collectives.broadcast_object(f"memory:{label}:{os.urandom(4).hex()}")
        if collectives.rank() == 0:
            self.index, self.stores = start(settings, collectives.world(), config, prefix)
        collectives.barrier()
        if collectives.rank() != 0:
            self.index = ray.get_actor(prefix)
            self.stores = [ray.get_actor(f"{prefix}:{shard}") for shard in range(config.shards)]
        self.actors = [self.index, *self.stores]
        self.watch = Watch(self.actors, f"{label}: memory")
        self.send = Exchanger(settings, self.index, self.stores)
        self._waiting: SimpleQueue[_Call] = SimpleQueue()
        Thread(target=_work, args=(self._waiting,), name="memory", daemon=True).start()

    def exchange(
        self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int
    ) -> Future[RecallArrays | None]:
        """See `rayssl.training.context.MemoryClient.exchange`."""
        self.calls += 1
        answer = Future[RecallArrays | None]()
        part = Part(collectives.rank(), remember, ids, epoch)
        self._waiting.put((answer, partial(self.send, self.calls, [part])))
        return answer

    def refresh(self, epoch: int) -> dict[str, float]:
        """See `rayssl.training.context.MemoryClient.refresh`."""
        return answer_on_all_ranks(lambda: self.index.refresh.remote(epoch))  # type: ignore[no-any-return]

    def centroids(self) -> np.ndarray:
        """See `rayssl.training.context.MemoryClient.centroids`."""
        return answer_on_all_ranks(self.index.centroids.remote)  # type: ignore[no-any-return]

    def metrics(self) -> dict[str, float]:
        """See `rayssl.training.context.Checkpointable.metrics`."""
        lost = sum(ray.get([store.lost_rows.remote() for store in self.stores]))
        return in_steps(ray.get(self.index.metrics.remote(lost)), self._ahead)

    def snapshot(self) -> Callable[[str], Records]:
        """See `rayssl.training.context.Checkpointable.snapshot`."""
        return snapshot_of((self.index, *self.stores))

    def load(self, folder: str, records: Records) -> None:
        """See `rayssl.training.context.Checkpointable.load`; the actors read, when rank 0 calls."""

        def restore() -> None:
            get(self.index.restore.remote(folder, records))  # first: its errors speak of the whole memory
            get([store.restore.remote(folder, records) for store in self.stores])
            whitening = get(self.index.commit.remote())
            get([store.commit.remote(whitening) for store in self.stores])

        collectives.on_rank_0(restore)


def _work(waiting: SimpleQueue[_Call]) -> None:
    while True:
        answer, call = waiting.get()
        try:
            answer.set_result(call()[0])
        except BaseException as error:
            answer.set_exception(error)

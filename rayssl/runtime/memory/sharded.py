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
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays, Shares, write_request
from rayssl.memory.utterances.index import WriteRequest
from rayssl.memory.utterances.positives import merge_nearest
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.store import Answer, Message
from rayssl.runtime.memory.actor import concurrency, options
from rayssl.runtime.memory.relay import Part
from rayssl.runtime.memory.rounds import Watch, answer_on_all_ranks, get, in_steps, snapshot_of
from rayssl.runtime.memory.servers import Asked, IndexServer, Placed, StoreServer
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


class Exchanger:
    """The exchanges of one rank or of the ranks of a node, one after the other; see `rayssl.runtime.memory.relay`."""

    def __init__(self, settings: MemorySettings, index: Any, stores: list[Any]) -> None:
        self._settings = settings
        self._shares = Shares(settings, len(stores))
        self._index, self._stores = index, stores

    def __call__(self, call: int, parts: Sequence[Part]) -> list[RecallArrays | None]:
        """The ``call``-th of them, from 1, of all ``parts``."""
        requests = [[write_request(self._settings, each) for each in part.remember] for part in parts]
        asked = [Asked(part.rank, own, part.ids, part.epoch) for part, own in zip(parts, requests, strict=True)]
        placed: list[Placed] = get(self._index.exchanges.remote(call, asked))
        by_part = [self._messages(*each) for each in zip(parts, requests, placed, strict=True)]
        ranks = [part.rank for part in parts]
        sent = [
            store.exchanges.remote(call, list(zip(ranks, messages, strict=True)))
            for store, messages in zip(self._stores, zip(*by_part, strict=True), strict=True)
        ]
        answers = list(zip(*get(sent), strict=True))  # of each part, of each store
        pools = [pool for _, _, pool in placed if pool is not None]
        if pools:
            return self._nearest(parts, answers, pools[-1])
        return [
            None if draw is None else self._shares.recall(draw, own)
            for (_, draw, _), own in zip(placed, answers, strict=True)
        ]

    def _messages(self, part: Part, requests: list[WriteRequest], placed: Placed) -> list[tuple[Message, ...]]:
        """For each store, a message for each step of ``part``."""
        slots, draw, pool = placed
        queries = np.zeros(0, dtype=np.int64) if pool is None or part.ids is None else part.ids
        steps = list(zip(part.remember, requests, slots, strict=True))
        messages = [self._shares.messages(*each) for each in steps[:-1]]
        messages.append(self._shares.messages(*(steps[-1] if steps else ()), draw=draw, queries=queries))
        return list(zip(*messages, strict=True))

    def _nearest(
        self, parts: Sequence[Part], answers: Sequence[Sequence[Answer]], pool: np.ndarray
    ) -> list[RecallArrays | None]:
        """What is drawn among the nearest references of the anchors of all ``parts``."""
        asking = [(part.ids, own) for part, own in zip(parts, answers, strict=True) if part.ids is not None]
        rows = ray.put(np.concatenate([self._shares.queries(ids, own) for ids, own in asking]))
        anchors, present = np.concatenate([ids for ids, _ in asking]), ray.put(pool)
        found = get([store.nearest.remote(rows, present) for store in self._stores])
        near = merge_nearest(found, len(anchors), self._settings.neighbours + 1)
        draw = get(self._index.choose.remote(anchors, parts[0].epoch, near))
        sent = zip(self._stores, self._shares.messages(draw=draw), strict=True)
        recall = self._shares.recall(draw, get([store.read.remote(message) for store, message in sent]))
        recalls: list[RecallArrays | None] = []
        at = 0
        for part in parts:
            own = slice(at, at + len(part.ids)) if part.ids is not None else None
            recalls.append(None if own is None else RecallArrays(recall.rows[own], recall.found[own], recall.ids[own]))
            at = at if own is None else own.stop
        return recalls


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

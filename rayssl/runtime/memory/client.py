"""The loop's client of a job's memory of utterances: in one actor, or in several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from rayssl import collectives
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory import relay
from rayssl.runtime.memory.actor import ActorMemory
from rayssl.runtime.memory.asking import Watch
from rayssl.runtime.memory.sharded import ShardedMemory
from rayssl.training.context import MemoryClient
from rayssl.training.pieces import Records


class RelayedMemory:
    """The loop's client ``memory``, whose exchanges go through the ``relay`` of this rank's node."""

    def __init__(self, memory: MemoryClient, relay: Any, watch: Watch) -> None:
        self._memory, self._relay = memory, relay
        self._calls = 0
        self.watch = watch
        self.refresh, self.centroids = memory.refresh, memory.centroids
        self.metrics, self.snapshot = memory.metrics, memory.snapshot

    def exchange(
        self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int
    ) -> Future[RecallArrays | None]:
        """See `rayssl.training.context.MemoryClient.exchange`."""
        self._calls += 1
        answer = self._relay.exchange.remote(self._calls, collectives.rank(), list(remember), ids, epoch)
        return answer.future()  # type: ignore[no-any-return]

    def load(self, folder: str, records: Records) -> None:
        """See `rayssl.training.context.Checkpointable.load`."""
        self._memory.load(folder, records)


def connect(settings: MemorySettings, config: MemoryConfig, label: str) -> MemoryClient:
    """Starts the actor or the actors of a job from rank 0, and returns each rank's client. Call it on all ranks.

    ``label`` is part of the actors' names.
    """
    client = ActorMemory(settings, config, label) if config.shards == 1 else ShardedMemory(settings, config, label)
    return _through_nodes(client, label)


def _through_nodes(client: ActorMemory | ShardedMemory, label: str) -> MemoryClient:
    """``client``; its exchanges go through a relay where this rank's node has one."""
    own = ray.get_runtime_context().get_node_id()
    groups = relay.by_node(collectives.gather_objects(own))
    prefix = collectives.broadcast_object(f"memory:{label}:{os.urandom(4).hex()}")
    ranks, name = groups.get(own), f"{prefix}:{own}"
    started = relay.start(name, own, ranks, client.send) if ranks and collectives.rank() == ranks[0] else None
    collectives.barrier()
    if ranks is None:
        return client
    joined = ray.get_actor(name) if started is None else started
    return RelayedMemory(client, joined, Watch([joined, *client.actors], f"{label}: memory"))

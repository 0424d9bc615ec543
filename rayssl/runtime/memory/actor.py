"""The memory actor: one `UtteranceMemory` for the whole job, and the loop's client of it.

Each rank makes one call a step, with what it remembers and the ids of its next batch. The answer comes while the rank
computes. Strict: the actor applies what all ranks remembered at a step, in rank order, before it answers any of them.
Ahead: it answers at once, and counts by how many steps the slowest rank is behind.

The actor belongs to rank 0. When the worker group restarts, the actor ends too, and a new one starts from the
checkpoint, so that model and memory never come from different steps.

`rayssl.runtime.memory.sharded` is for ``memory.shards`` above 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from rayssl import collectives
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory.asking import Watch, answer_on_all_ranks, in_steps, snapshot_of
from rayssl.runtime.memory.rounds import get
from rayssl.runtime.memory.sending import Sender
from rayssl.runtime.memory.servers import Server
from rayssl.training.pieces import Records


def concurrency(world: int) -> int:
    """How many calls an actor takes at once. A strict one must have those of all ranks before it answers any."""
    return max(1000, 8 * world)


def options(config: MemoryConfig, name: str, world: int) -> dict[str, Any]:
    """Ray's options of an actor for ``world`` ranks: its name, and what ``config`` gives it of its node."""
    declared: dict[str, Any] = {"num_cpus": config.cpus, "name": name, "max_concurrency": concurrency(world)}
    if config.memory_bytes:
        declared["memory"] = config.memory_bytes
    if config.gpus:
        declared["num_gpus"] = config.gpus
    return declared


class ActorMemory:
    """The loop's `MemoryClient` whose memory is an actor; made on all ranks together."""

    def __init__(self, settings: MemorySettings, config: MemoryConfig, label: str) -> None:
        self.calls, self._ahead = 0, config.ahead
        name = f"memory:{label}:{os.urandom(4).hex()}"
        if collectives.rank() == 0:
            # outside the trial's placement group, which is full
            declared = options(config, name, collectives.world())
            actor = ray.remote(Server).options(**declared, scheduling_strategy="DEFAULT")
            self.actor = actor.remote(settings, collectives.world(), config.sync == "strict")
            ray.get(self.actor.metrics.remote())  # alive before another rank looks for it
        name = collectives.broadcast_object(name)
        if collectives.rank() != 0:
            self.actor = ray.get_actor(name)
        self.actors, self.send = [self.actor], Sender(self.actor)
        self.watch = Watch(self.actors, f"{label}: memory")

    def exchange(
        self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int
    ) -> Future[RecallArrays | None]:
        """See `rayssl.training.context.MemoryClient.exchange`."""
        self.calls += 1
        answer = self.actor.exchange.remote(self.calls, collectives.rank(), list(remember), ids, epoch)
        return answer.future()  # type: ignore[no-any-return]

    def refresh(self, epoch: int) -> dict[str, float]:
        """See `rayssl.training.context.MemoryClient.refresh`."""
        return answer_on_all_ranks(lambda: self.actor.refresh.remote(epoch))  # type: ignore[no-any-return]

    def centroids(self) -> np.ndarray:
        """See `rayssl.training.context.MemoryClient.centroids`."""
        return answer_on_all_ranks(self.actor.centroids.remote)  # type: ignore[no-any-return]

    def metrics(self) -> dict[str, float]:
        """See `rayssl.training.context.Checkpointable.metrics`."""
        return in_steps(ray.get(self.actor.metrics.remote()), self._ahead)

    def snapshot(self) -> Callable[[str], Records]:
        """See `rayssl.training.context.Checkpointable.snapshot`."""
        return snapshot_of([self.actor])

    def load(self, folder: str, records: Records) -> None:
        """See `rayssl.training.context.Checkpointable.load`; the actor reads, when rank 0 calls."""
        collectives.on_rank_0(lambda: get(self.actor.load.remote(folder, records)))

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
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from rayssl import collectives
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory.rounds import get
from rayssl.runtime.memory.servers import Server
from rayssl.training.pieces import Records


def options(config: MemoryConfig, name: str) -> dict[str, Any]:
    """Ray's options of an actor: its name, and the resources of its node that ``config`` gives it."""
    declared: dict[str, Any] = {"num_cpus": config.cpus, "name": name, "max_concurrency": 1000}
    if config.memory_bytes:
        declared["memory"] = config.memory_bytes
    if config.gpus:
        declared["num_gpus"] = config.gpus
    return declared


class ActorMemory:
    """The loop's `MemoryClient` whose memory is an actor; made on all ranks together."""

    def __init__(self, settings: MemorySettings, config: MemoryConfig, label: str) -> None:
        self.calls = 0
        name = f"memory:{label}:{os.urandom(4).hex()}"
        if collectives.rank() == 0:
            # outside the trial's placement group, which is full
            actor = ray.remote(Server).options(**options(config, name), scheduling_strategy="DEFAULT")
            self.actor = actor.remote(settings, collectives.world(), config.sync == "strict")
            ray.get(self.actor.metrics.remote())  # alive before another rank looks for it
        name = collectives.broadcast_object(name)
        if collectives.rank() != 0:
            self.actor = ray.get_actor(name)

    def exchange(
        self, remember: RememberArrays | None, ids: np.ndarray | None, epoch: int
    ) -> Future[RecallArrays | None]:
        """See `rayssl.training.context.MemoryClient.exchange`."""
        self.calls += 1
        answer = self.actor.exchange.remote(self.calls, collectives.rank(), remember, ids, epoch)
        return answer.future()  # type: ignore[no-any-return]

    def refresh(self, epoch: int) -> dict[str, float]:
        """See `rayssl.training.context.MemoryClient.refresh`."""
        metrics = ray.get(self.actor.refresh.remote(epoch)) if collectives.rank() == 0 else None
        return collectives.broadcast_object(metrics)  # type: ignore[no-any-return]

    def metrics(self) -> dict[str, float]:
        """See `rayssl.training.context.Checkpointable.metrics`."""
        return ray.get(self.actor.metrics.remote())  # type: ignore[no-any-return]

    def save(self, folder: str) -> Records:
        """See `rayssl.training.context.Checkpointable.save`; the actor writes."""
        return get(self.actor.save.remote(folder))  # type: ignore[no-any-return]

    def load(self, folder: str, records: Records) -> None:
        """See `rayssl.training.context.Checkpointable.load`; the actor reads, when rank 0 calls."""
        on_all_ranks(lambda: get(self.actor.load.remote(folder, records)))


def on_all_ranks(action: Any) -> None:
    """Runs ``action`` on rank 0. A ValueError or OSError, which a user can fix, is raised on every rank."""
    error: ValueError | OSError | None = None
    if collectives.rank() == 0:
        try:
            action()
        except (ValueError, OSError) as caught:  # all kinds of `UserError` are one of them
            error = caught
    error = collectives.broadcast_object(error)
    if error is not None:
        raise error

"""The memory actor: one `rayssl.memory.SpeakerMemory` for the whole job, and the loop's client of it.

One call a step and rank carries what the rank remembers and the ids it will ask for next; its answer comes back while
the rank computes. In strict mode the actor applies what all ranks remembered at a step, in rank order, before it
answers any of them; ahead, it answers at once and counts by how many steps the slowest rank is behind.

The actor belongs to rank 0: when the worker group restarts it goes too, and the next one starts from the checkpoint, so
that model and memory never come from different steps.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from rayssl import collectives
from rayssl.errors import CheckpointError
from rayssl.experiment import MemoryConfig, build_memory
from rayssl.memory.exchange import Recall, Remember


class Server:
    """What runs inside the actor; every method is a coroutine of one event loop, so none interrupts another."""

    def __init__(self, settings: dict[str, Any], world: int, config: dict[str, Any]) -> None:
        import faiss

        self.config = MemoryConfig(**config)
        faiss.omp_set_num_threads(self.config.threads or os.cpu_count() or 1)
        self.memory = build_memory(settings)
        self.world = world
        self.waiting: dict[int, dict[int, Remember | None]] = {}
        self.applied = 0  # calls of which every rank's part has been applied
        self.last = [0] * world
        self.behind, self.answered = 0, 0
        self.turn = asyncio.Condition()

    async def exchange(
        self, call: int, rank: int, remember: Remember | None, ids: np.ndarray | None, epoch: int
    ) -> Recall | None:
        """The ``call``-th exchange (from 1) of ``rank``; see `rayssl.training.context.MemoryClient`."""
        if self.config.sync == "strict":
            await self._apply_together(call, rank, remember)
        elif remember is not None:
            self.memory.remember(remember)
        self.last[rank] = call
        self.behind += call - min(self.last)
        self.answered += 1
        return None if ids is None else self.memory.recall(ids, epoch=epoch)

    async def refresh(self, epoch: int) -> dict[str, float]:
        """One clustering; calls that come meanwhile wait."""
        return self.memory.refresh(epoch)

    async def metrics(self) -> dict[str, float]:
        """The memory's counts since the last call, and the staleness in steps of its answers."""
        staleness = self.behind / max(1, self.answered) if self.config.sync == "ahead" else 0.0
        self.behind, self.answered = 0, 0
        return {**self.memory.metrics(reset=True), "staleness_steps": staleness}

    async def state_dict(self) -> dict[str, np.ndarray]:
        """The whole memory."""
        return self.memory.state_dict()

    async def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restores the memory."""
        self.memory.load_state_dict(state)

    async def _apply_together(self, call: int, rank: int, remember: Remember | None) -> None:
        async with self.turn:
            parts = self.waiting.setdefault(call, {})
            parts[rank] = remember
            if len(parts) == self.world:
                for _, part in sorted(parts.items()):
                    if part is not None:
                        self.memory.remember(part)
                del self.waiting[call]
                self.applied = call
                self.turn.notify_all()
            await self.turn.wait_for(lambda: self.applied >= call)


class ActorMemory:
    """The loop's `MemoryClient` whose memory is an actor; made on all ranks together."""

    def __init__(self, settings: dict[str, Any], config: MemoryConfig, label: str) -> None:
        self.label = label
        self.calls = 0
        name = f"memory:{label}:{os.urandom(4).hex()}"
        if collectives.rank() == 0:
            actor = ray.remote(Server).options(num_cpus=config.cpus, name=name, max_concurrency=1000)
            self.actor = actor.remote(settings, collectives.world(), config.model_dump())
            ray.get(self.actor.metrics.remote())  # alive before another rank looks for it
        name = collectives.broadcast_object(name)
        if collectives.rank() != 0:
            self.actor = ray.get_actor(name)

    def exchange(self, remember: Remember | None, ids: np.ndarray | None, epoch: int) -> Future[Recall | None]:
        """See `rayssl.training.context.MemoryClient.exchange`."""
        self.calls += 1
        answer = self.actor.exchange.remote(self.calls, collectives.rank(), remember, ids, epoch)
        return answer.future()  # type: ignore[no-any-return]

    def refresh(self, epoch: int) -> dict[str, float]:
        """See `rayssl.training.context.MemoryClient.refresh`."""
        metrics = ray.get(self.actor.refresh.remote(epoch)) if collectives.rank() == 0 else None
        return collectives.broadcast_object(metrics)  # type: ignore[no-any-return]

    def metrics(self) -> dict[str, float]:
        """See `rayssl.training.context.MemoryClient.metrics`."""
        return ray.get(self.actor.metrics.remote())  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, np.ndarray]:
        """See `rayssl.training.context.MemoryClient.state_dict`."""
        return ray.get(self.actor.state_dict.remote())  # type: ignore[no-any-return]

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """See `rayssl.training.context.MemoryClient.load_state_dict`; rank 0 sends, the others wait for it."""
        if collectives.rank() == 0:
            try:
                ray.get(self.actor.load_state_dict.remote(state))
            except ValueError as error:  # Ray's own, which poses as the one it wraps
                raise CheckpointError(
                    f"{self.label}: {getattr(error, 'cause', error)}: the method's settings or the corpus have changed "
                    "since; put them back or use another run folder"
                ) from None
        collectives.barrier()

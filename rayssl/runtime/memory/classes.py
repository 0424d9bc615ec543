"""The memory of classes in actors. Each has a range of the classes; the histogram comes from the first.

A call of a rank goes to all actors. Strict: an actor applies what all ranks give in a call in rank order, before any of
them may call again. The actors answer nothing else: they own the state and its checkpoints, and what a step needs of it
every rank holds on its device, see `rayssl.training.classes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Any

import numpy as np
import ray

from rayssl import collectives
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.classes.memory import ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.pieces import limits
from rayssl.runtime.memory.actor import options
from rayssl.runtime.memory.asking import Watch, snapshot_of
from rayssl.runtime.memory.rounds import get
from rayssl.runtime.memory.servers import ClassServer
from rayssl.training.pieces import Records

_SHARES = ("prototypes_filled", "queue_fill")  # of an actor's own classes; the others but "rejected" are the same


def start(settings: ClassSettings, world: int, config: MemoryConfig, names: list[str]) -> list[Any]:
    """The actors of all classes for ``world`` ranks, alive, by these ``names``."""
    bounds = limits(settings.classes, len(names)).tolist()
    actors = [
        ray.remote(ClassServer)
        .options(**options(config, name, world), scheduling_strategy="SPREAD")
        .remote(settings, world, config.sync == "strict", bounds[shard], bounds[shard + 1])
        for shard, name in enumerate(names)
    ]
    ray.get([actor.metrics.remote() for actor in actors])
    return actors


class Caller:
    """The calls of one rank, one after the other: it waits for a call before it makes the next."""

    def __init__(self, actors: list[Any], rank: int) -> None:
        self._actors, self._rank = actors, rank
        self._calls = 0

    def __call__(self, remember: ClassRememberArrays) -> Future[None]:
        """See `rayssl.training.context.ClassClient.remember`."""
        self._calls += 1
        calls = [actor.remember.remote(self._calls, self._rank, remember).future() for actor in self._actors]
        return _together(calls)


class ActorClasses:
    """The loop's `ClassClient` of one actor or more; made on all ranks together."""

    def __init__(self, settings: ClassSettings, config: MemoryConfig, label: str) -> None:
        prefix = collectives.broadcast_object(f"memory:{label}:{os.urandom(4).hex()}")
        names = [f"{prefix}:{shard}" for shard in range(config.shards)]
        self._sizes = np.diff(limits(settings.classes, config.shards))
        if collectives.rank() == 0:
            self.actors = start(settings, collectives.world(), config, names)
        collectives.barrier()
        if collectives.rank() != 0:
            self.actors = [ray.get_actor(name) for name in names]
        self.watch = Watch(self.actors, f"{label}: memory")
        self._call = Caller(self.actors, collectives.rank())

    def remember(self, remember: ClassRememberArrays) -> Future[None]:
        """See `rayssl.training.context.ClassClient.remember`."""
        return self._call(remember)

    def metrics(self) -> dict[str, float]:
        """See `rayssl.training.context.Checkpointable.metrics`."""
        every = ray.get([actor.metrics.remote() for actor in self.actors])
        shares = [float(np.average([each[name] for each in every], weights=self._sizes)) for name in _SHARES]
        figures = {**every[0], **dict(zip(_SHARES, shares, strict=True))}
        figures["rejected"] = sum(each["rejected"] for each in every)
        return figures

    def snapshot(self) -> Callable[[str], Records]:
        """See `rayssl.training.context.Checkpointable.snapshot`."""
        return snapshot_of(self.actors)

    def load(self, folder: str, records: Records) -> None:
        """See `rayssl.training.context.Checkpointable.load`; the actors read, when rank 0 calls."""
        collectives.on_rank_0(lambda: get([actor.load.remote(folder, records) for actor in self.actors]))


def _together(calls: list[Future[None]]) -> Future[None]:
    """Is done when all ``calls`` are; it raises the error of the first that has one."""
    joined: Future[None] = Future()
    lock, missing = Lock(), [len(calls)]

    def done(_: Future[None]) -> None:
        with lock:
            missing[0] -= 1
            if missing[0]:
                return
        error = next((each.exception() for each in calls if each.exception() is not None), None)
        if error is None:
            joined.set_result(None)
        else:
            joined.set_exception(error)

    for each in calls:
        each.add_done_callback(done)
    return joined

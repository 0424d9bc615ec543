"""The memory of classes in actors. Each has a range of the classes; the histogram comes from the first.

A call of a rank goes to all actors, and their answers are joined. Strict: an actor applies what all ranks give in a
call, in rank order, before it answers any of them. So prototypes and anchors are those of the whole batch, for any
number of ranks and actors.

With A anchors of each class (`ClassSettings.anchors`) each rank gets 4 C A D bytes more in a step. Ray keeps an answer
of more than 100 KB in the object store of its node. A rank on the same node reads it there, and it is not copied unless
answers of several actors have to be joined.
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
from rayssl.memory.classes.memory import ClassRecallArrays, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.pieces import limits
from rayssl.runtime.memory.actor import options
from rayssl.runtime.memory.rounds import Watch, get, snapshot_of
from rayssl.runtime.memory.servers import ClassServer
from rayssl.training.pieces import Records

_SHARES = ("prototypes_filled", "queue_fill")  # of an actor's own classes; the others but "rejected" are the same
_OF_CLASSES = ("prototypes", "present", "rows", "filled")  # of an answer, with a row for each class of an actor


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
    """The calls of one rank, one after the other. Ahead: a call returns the answer to the call before."""

    def __init__(self, actors: list[Any], rank: int, strict: bool) -> None:
        self._actors, self._rank, self._strict = actors, rank, strict
        self._calls = 0
        self._before: Future[ClassRecallArrays | None] | None = None

    def __call__(self, remember: ClassRememberArrays, step: int | None) -> Future[ClassRecallArrays | None]:
        """See `rayssl.training.context.ClassClient.exchange`."""
        self._calls += 1
        answers = [actor.exchange.remote(self._calls, self._rank, remember, step).future() for actor in self._actors]
        answer = _together(answers)
        if self._strict or step is None:
            return answer
        before, self._before = self._before, answer
        return answer if before is None else before


class ActorClasses:
    """The loop's `ClassClient` of one actor or more; made on all ranks together."""

    def __init__(self, settings: ClassSettings, config: MemoryConfig, label: str) -> None:
        self._strict = config.sync == "strict"
        prefix = collectives.broadcast_object(f"memory:{label}:{os.urandom(4).hex()}")
        names = [f"{prefix}:{shard}" for shard in range(config.shards)]
        self._sizes = np.diff(limits(settings.classes, config.shards))
        if collectives.rank() == 0:
            self.actors = start(settings, collectives.world(), config, names)
        collectives.barrier()
        if collectives.rank() != 0:
            self.actors = [ray.get_actor(name) for name in names]
        self.watch = Watch(self.actors, f"{label}: memory")
        self._call = Caller(self.actors, collectives.rank(), self._strict)

    def exchange(self, remember: ClassRememberArrays, step: int | None) -> Future[ClassRecallArrays | None]:
        """See `rayssl.training.context.ClassClient.exchange`."""
        return self._call(remember, step)

    def metrics(self) -> dict[str, float]:
        """See `rayssl.training.context.Checkpointable.metrics`."""
        every = ray.get([actor.metrics.remote() for actor in self.actors])
        shares = [float(np.average([each[name] for each in every], weights=self._sizes)) for name in _SHARES]
        figures = {**every[0], **dict(zip(_SHARES, shares, strict=True))}
        figures["rejected"] = sum(each["rejected"] for each in every)
        figures["staleness_steps"] += 0.0 if self._strict else 1.0  # an answer is that of the step before
        return figures

    def snapshot(self) -> Callable[[str], Records]:
        """See `rayssl.training.context.Checkpointable.snapshot`."""
        return snapshot_of(self.actors)

    def load(self, folder: str, records: Records) -> None:
        """See `rayssl.training.context.Checkpointable.load`; the actors read, when rank 0 calls."""
        collectives.on_rank_0(lambda: get([actor.load.remote(folder, records) for actor in self.actors]))


def _together(answers: list[Future[ClassRecallArrays | None]]) -> Future[ClassRecallArrays | None]:
    """Joins the answers of all actors, in the order of their classes; raises the error of the first that has one."""
    joined: Future[ClassRecallArrays | None] = Future()
    lock, missing = Lock(), [len(answers)]

    def done(_: Future[ClassRecallArrays | None]) -> None:
        with lock:
            missing[0] -= 1
            if missing[0]:
                return
        try:
            parts = [each.result() for each in answers]
        except BaseException as error:
            joined.set_exception(error)
            return
        joined.set_result(_joined([part for part in parts if part is not None]))

    for each in answers:
        each.add_done_callback(done)
    return joined


def _joined(parts: list[ClassRecallArrays]) -> ClassRecallArrays | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    of_classes = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_CLASSES}
    return ClassRecallArrays(histogram=parts[0].histogram, **of_classes)

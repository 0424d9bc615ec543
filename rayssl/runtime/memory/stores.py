"""The stores of a memory in actors, as its clustering reaches them: all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, TypeVarTuple

import numpy as np
import ray

from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import Partitions
from rayssl.clustering.whitening import Moments, Whitening
from rayssl.runtime.memory.rounds import get

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_SENT_ONCE = 1 << 16  # bytes above which an argument for all stores goes into the object store


class ActorStores:
    """`rayssl.memory.utterances.stores.RowStores` of actors of `rayssl.runtime.memory.servers.StoreServer`."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors
        self.partitions: Partitions = _ActorPartitions(actors)

    def moments(self) -> list[list[Moments]]:
        """See `RowStores.moments`."""
        found: list[list[Moments]] = get([actor.moments.remote() for actor in self._actors])
        return found

    def whiten(self, whitening: Whitening) -> None:
        """See `RowStores.whiten`."""
        get([actor.whiten.remote(whitening) for actor in self._actors])

    def begin(self, whitening: Whitening | None, *, copy: bool) -> list[np.ndarray]:
        """See `RowStores.begin`. Without ``copy`` the stores make calls of ranks wait until `finish`."""
        filled: list[np.ndarray] = get([actor.begin.remote(whitening, copy) for actor in self._actors])
        return filled

    def finish(self) -> None:
        """See `RowStores.finish`."""
        get([actor.finish.remote() for actor in self._actors])


class _ActorPartitions:
    """`Partitions` of stores in actors."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def every(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> list[T]:
        sent = [ray.put(each) if getattr(each, "nbytes", 0) > _SENT_ONCE else each for each in arguments]
        answers: list[T] = get([actor.on_partition.remote(method, *sent, **options) for actor in self._actors])
        return answers

    def each(self, method: Callable[[Partition, *Ts], T], arguments: Sequence[tuple[*Ts]], /) -> list[T]:
        sent = zip(self._actors, arguments, strict=True)
        answers: list[T] = get([actor.on_partition.remote(method, *own) for actor, own in sent])
        return answers

"""All stores of a memory, as its clustering reaches them: `RowStores`, and its implementation in one process.

`rayssl.runtime.memory.stores` has the implementation for stores in actors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple

import numpy as np

from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import Partitions
from rayssl.clustering.whitening import Moments, Whitening
from rayssl.memory.utterances.store import Store

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class RowStores(Protocol):
    """Every method calls the method of `Store` of the same name on all stores, in the order of their rows."""

    @property
    def partitions(self) -> Partitions:
        """The references as parts of a k-means, one for each store; from `begin` to `finish`."""

    def moments(self) -> list[list[Moments]]:
        """Those of each piece of each store."""

    def whiten(self, whitening: Whitening) -> None:
        """From now on references are compared by this map."""

    def begin(self, whitening: Whitening | None, *, copy: bool) -> list[np.ndarray]:
        """Prepares a clustering; which utterances of each store have a reference, bool ``[n]``."""

    def finish(self) -> None:
        """Releases what `begin` has prepared; also where it has failed in some stores."""


class LocalStores:
    """`RowStores` of this process, called one after the other."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self.partitions: Partitions = _LocalPartitions(stores)

    def moments(self) -> list[list[Moments]]:
        """See `RowStores.moments`."""
        return [store.moments() for store in self._stores]

    def whiten(self, whitening: Whitening) -> None:
        """See `RowStores.whiten`."""
        for store in self._stores:
            store.whiten(whitening)

    def begin(self, whitening: Whitening | None, *, copy: bool) -> list[np.ndarray]:
        """See `RowStores.begin`."""
        return [store.begin(whitening, copy=copy) for store in self._stores]

    def finish(self) -> None:
        """See `RowStores.finish`."""
        for store in self._stores:
            store.finish()


class _LocalPartitions:
    """`Partitions` of the stores of this process."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores

    def every(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> list[T]:
        return [store.on_partition(method, *arguments, **options) for store in self._stores]

    def each(self, method: Callable[[Partition, *Ts], T], arguments: Sequence[tuple[*Ts]], /) -> list[T]:
        return [store.on_partition(method, *own) for store, own in zip(self._stores, arguments, strict=True)]

"""All parts of the points of a k-means, as one: a typed way to call a method of `Partition` on each of them.

Call sites name the method by reference, so that mypy checks arguments and answers, and a reader can follow it::

    changed = partitions.every(Partition.assign, centroids)  # list[bool], one answer for each part

The parts may be here (`LocalPartitions`), or behind the stores of a memory (`rayssl.memory.utterances.stores`), also in
other processes. A method reference can be pickled. A subclass of `Partition` may override any of the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple

from rayssl.clustering.partition import Partition, call

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Partitions(Protocol):
    """All parts, in the order of their points. Both methods return the answers of the parts in this order."""

    def every(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> list[T]:
        """Calls ``method`` on every part with the same arguments."""

    def each(self, method: Callable[[Partition, *Ts], T], arguments: Sequence[tuple[*Ts]], /) -> list[T]:
        """Calls ``method`` on each part with arguments of its own: ``arguments[i]`` are those of part i."""


class LocalPartitions:
    """`Partitions` of this process, called one after the other."""

    def __init__(self, parts: Sequence[Partition]) -> None:
        self._parts = parts

    def every(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> list[T]:
        """See `Partitions.every`."""
        return [call(part, method, *arguments, **options) for part in self._parts]

    def each(self, method: Callable[[Partition, *Ts], T], arguments: Sequence[tuple[*Ts]], /) -> list[T]:
        """See `Partitions.each`."""
        return [call(part, method, *own) for part, own in zip(self._parts, arguments, strict=True)]


class SampledPartitions:
    """`Partitions` of the samples that the parts have drawn (`Partition.draw`)."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions

    def every(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> list[T]:
        """See `Partitions.every`."""
        return self._partitions.every(Partition.on_sample, method, *arguments, **options)

    def each(self, method: Callable[[Partition, *Ts], T], arguments: Sequence[tuple[*Ts]], /) -> list[T]:
        """See `Partitions.each`."""
        return self._partitions.each(Partition.on_sample, [(method, *own) for own in arguments])

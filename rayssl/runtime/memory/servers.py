"""What runs inside the actors of a memory: all of it in one, or the index in one and the rows in others.

Nothing here needs torch, unless rows are clustered on a GPU: an actor starts in a second and needs little memory
besides its rows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np

from rayssl.clustering.partition import Partition
from rayssl.clustering.whitening import Moments, Whitening
from rayssl.memory.classes.memory import ClassMemory, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.pieces import Piece
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.index import Draw, Index, WriteRequest
from rayssl.memory.utterances.joining import for_ids, joined
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.positives import Nearest
from rayssl.memory.utterances.refresh import Clusterer
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.store import Answer, Message, Store
from rayssl.runtime.memory.relay import Part
from rayssl.runtime.memory.rounds import Rounds
from rayssl.runtime.memory.stores import ActorStores
from rayssl.training import pieces
from rayssl.training.pieces import Records

P = ParamSpec("P")
T = TypeVar("T")


def _on_this_node(settings: MemorySettings) -> MemorySettings:
    """``settings`` with a number of threads, by default all of the node: Ray lets OpenMP use fewer in an actor."""
    return replace(settings, threads=settings.threads or os.cpu_count() or 1)


def _steps(parts: Sequence[Sequence[T]]) -> Iterator[list[tuple[int, T]]]:
    """Step by step, what those say in it who say something: of each its place, and what it says."""
    for step in range(max(map(len, parts), default=0)):
        yield [(place, part[step]) for place, part in enumerate(parts) if len(part) > step]


def _epoch(epochs: Iterable[int]) -> int:
    """The epoch of a call: ranks make their calls at the same steps, so it is the same for all of them."""
    (epoch,) = set(epochs)
    return epoch


class Staleness:
    """By how many steps the slowest rank is behind the one that is answered: the average since `metrics`."""

    def __init__(self, world: int) -> None:
        self._last = [0] * world
        self._behind = self._answered = 0

    def count(self, call: int, ranks: Iterable[int]) -> None:
        """``ranks`` are answered their ``call``-th call."""
        for rank in ranks:
            self._last[rank] = call
            self._behind += call - min(self._last)
            self._answered += 1

    def metrics(self, strict: bool) -> dict[str, float]:
        """``staleness_steps`` since the last call of this method; 0 where ranks wait for each other."""
        staleness = 0.0 if strict else self._behind / max(1, self._answered)
        self._behind = self._answered = 0
        return {"staleness_steps": staleness}


class SavingServer:
    """What every actor of a memory does for checkpoints, and while ranks wait for each other."""

    rounds: Rounds[Any, Any]
    _kept: Iterator[Piece]

    def keep(self) -> Iterator[Piece]:
        """What it holds, as it is now; the pieces are made when they are asked for."""
        raise NotImplementedError

    async def snapshot(self) -> None:
        """Keeps what it holds as it is now, for `save`; calls that come meanwhile wait."""
        async with self.rounds.lock:
            self._kept = await asyncio.to_thread(self.keep)

    async def save(self, folder: str) -> Records:
        """Writes what `snapshot` has kept, once, while calls are answered."""
        return await asyncio.to_thread(pieces.write, folder, self._kept)

    async def missing(self) -> dict[int, float]:
        """See `Rounds.missing`."""
        return self.rounds.missing()


class WholeServer(SavingServer):
    """An actor that holds a memory, or its part of one, with its index."""

    memory: UtteranceMemory | ClassMemory

    def keep(self) -> Iterator[Piece]:
        """See `SavingServer.keep`."""
        return self.memory.snapshot()

    async def load(self, folder: str, records: Records) -> None:
        """Restores it."""

        def restore() -> None:
            self.memory.restore(pieces.read_index(folder, records), pieces.reader(folder, records))

        async with self.rounds.lock:
            await asyncio.to_thread(restore)


class Server(WholeServer):
    """A whole memory; every method is a coroutine of one event loop, so none interrupts another.

    What takes long runs in a thread, while calls that need its result wait.
    """

    def __init__(self, settings: MemorySettings, world: int, strict: bool) -> None:
        self.memory: UtteranceMemory = UtteranceMemory(_on_this_node(settings))
        self.rounds = Rounds(world, strict, self._handle)
        self.staleness = Staleness(world)

    async def exchange(
        self, call: int, rank: int, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int
    ) -> RecallArrays | None:
        """The ``call``-th exchange (from 1) of ``rank``; see `rayssl.training.context.MemoryClient`."""
        return (await self.exchanges(call, [Part(rank, remember, ids, epoch)]))[0]

    async def exchanges(self, call: int, parts: Sequence[Part]) -> list[RecallArrays | None]:
        """The ``call``-th exchange of several ranks in one call."""
        return await self.rounds.take(call, {part.rank: part for part in parts})

    def _handle(self, call: int, parts: dict[int, Part]) -> list[RecallArrays | None]:
        for step in _steps([part.remember for part in parts.values()]):
            for what in joined([each for _, each in step]):
                self.memory.remember(what)
        self.staleness.count(call, parts)
        asked = [part.ids for part in parts.values()]
        return for_ids(asked, partial(self.memory.recall, epoch=_epoch(part.epoch for part in parts.values())))

    async def refresh(self, epoch: int) -> dict[str, float]:
        """One refresh; calls that come meanwhile wait."""
        async with self.rounds.lock:
            return await asyncio.to_thread(self.memory.refresh, epoch)

    async def centroids(self) -> np.ndarray:
        """Those of the clustering in use."""
        async with self.rounds.lock:
            return self.memory.centroids()

    async def metrics(self) -> dict[str, float]:
        """The memory's counts since the last call, and the staleness in steps of its answers."""
        async with self.rounds.lock:
            return {**self.memory.metrics(reset=True), **self.staleness.metrics(self.rounds.strict)}


class ClassServer(WholeServer):
    """The memory of some classes; every method is a coroutine of one event loop, so none interrupts another."""

    def __init__(self, settings: ClassSettings, world: int, strict: bool, first: int, last: int) -> None:
        self.memory: ClassMemory = ClassMemory(settings, first=first, last=last)
        self.rounds = Rounds(world, strict, self._handle)

    async def remember(self, call: int, rank: int, remember: ClassRememberArrays) -> None:
        """The ``call``-th call (from 1) of ``rank``; see `rayssl.training.context.ClassClient`."""
        await self.rounds.take(call, {rank: remember})

    def _handle(self, _: int, parts: dict[int, ClassRememberArrays]) -> list[None]:
        return [self.memory.remember(part) for part in parts.values()]  # type: ignore[func-returns-value]

    async def metrics(self) -> dict[str, float]:
        """The memory's figures."""
        async with self.rounds.lock:
            return self.memory.metrics()


class StoreServer(SavingServer):
    """One store; see `Server`."""

    def __init__(self, settings: MemorySettings, world: int, strict: bool, shard: int, shards: int) -> None:
        self.store = Store(_on_this_node(settings), shard, shards)
        self.rounds = Rounds(world, strict, self._handle)
        self.lost = 0
        self._held = False  # the lock, from the beginning to the end of a clustering of the rows themselves

    async def exchanges(self, call: int, parts: Sequence[tuple[int, Sequence[Message]]]) -> list[Answer]:
        """This store's share of the ``call``-th exchange (from 1) of some ranks: of each a message for each step.

        It answers the last one of each.
        """
        return await self.rounds.take(call, dict(parts))

    def _handle(self, _: int, parts: dict[int, Sequence[Message]]) -> list[Answer]:
        for step in _steps(list(parts.values())):
            for what in joined([message for _, message in step]):
                self.store.write(what)
        last = [messages[-1] for messages in parts.values()]
        (whole,) = joined(last)  # a message has all fields
        answer = self._counted(self.store.answer(whole))
        read = np.cumsum([len(message.read) for message in last])[:-1]
        asked = np.cumsum([len(message.queries) for message in last])[:-1]
        own_rows = np.split(answer.rows, read), np.split(answer.right, read), np.split(answer.queries, asked)
        return [Answer(*own) for own in zip(*own_rows, strict=True)]

    async def read(self, message: Message) -> Answer:
        """Answers ``message``, outside the order of the calls."""
        return self._counted(self.store.answer(message))

    async def nearest(self, queries: np.ndarray, pool: np.ndarray) -> Nearest:
        """See `Store.nearest`."""
        return await asyncio.to_thread(self.store.nearest, queries, pool)

    async def moments(self) -> list[Moments]:
        """See `Store.moments`."""
        return await self._between_calls(self.store.moments)

    async def whiten(self, whitening: Whitening) -> None:
        """See `Store.whiten`."""
        await self._between_calls(self.store.whiten, whitening)

    async def begin(self, whitening: Whitening | None, copy: bool) -> np.ndarray:
        """See `Store.begin`. Without ``copy`` the calls of ranks wait until `finish`, else until the copy is made."""
        await self.rounds.lock.acquire()
        self._held = True
        try:
            filled = await asyncio.to_thread(self.store.begin, whitening, copy=copy)
        except BaseException:
            self._release()
            raise
        if copy:
            self._release()
        return filled

    async def on_partition(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> T:
        """See `Store.on_partition`."""
        return await asyncio.to_thread(self.store.on_partition, method, *arguments, **options)

    async def finish(self) -> None:
        """See `Store.finish`; calls of ranks no longer wait."""
        await asyncio.to_thread(self.store.finish)
        self._release()

    async def lost_rows(self) -> int:
        """How many rows were not those of the expected utterance, since the last call."""
        lost, self.lost = self.lost, 0
        return lost

    def keep(self) -> Iterator[Piece]:
        """See `SavingServer.keep`."""
        return self.store.snapshot()

    async def restore(self, folder: str, records: Records) -> None:
        """Reads this store's share; in use after `commit`."""
        async with self.rounds.lock:
            await asyncio.to_thread(self.store.restore, pieces.reader(folder, records))

    async def commit(self, whitening: Whitening | None) -> None:
        """See `Store.commit`."""
        async with self.rounds.lock:
            await asyncio.to_thread(self.store.commit, whitening)

    def _counted(self, answer: Answer) -> Answer:
        self.lost += int((~answer.right).sum())
        assert not (self.lost and self.rounds.strict), "a slot has the row of another utterance than the index says"
        return answer

    async def _between_calls(self, function: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> T:
        """Runs ``function`` in a thread while no call of a rank is applied."""
        if self._held:
            return await asyncio.to_thread(function, *arguments, **options)
        async with self.rounds.lock:
            return await asyncio.to_thread(function, *arguments, **options)

    def _release(self) -> None:
        if self._held:
            self._held = False
            self.rounds.lock.release()


Placed: TypeAlias = tuple[list[np.ndarray], Draw | None, np.ndarray | None]
"""The slots of a rank's positives, step by step, and the draw for its ids. Where the nearest references have to be
found first: the pool instead of the draw, see `IndexServer.choose`."""


class Asked(NamedTuple):
    """What one rank says to the index in an exchange: what it writes, step by step, and the ids that it asks for."""

    rank: int
    writes: Sequence[WriteRequest]
    ids: np.ndarray | None
    epoch: int


class IndexServer(SavingServer):
    """The index; see `Server`."""

    def __init__(self, settings: MemorySettings, world: int, strict: bool, stores: list[Any]) -> None:
        self.index = Index(_on_this_node(settings))
        self.clusterer = Clusterer(self.index, ActorStores(stores))
        self.rounds = Rounds(world, strict, self._handle)
        self.staleness = Staleness(world)
        self._read: dict[str, np.ndarray] = {}

    async def exchanges(self, call: int, parts: Sequence[Asked]) -> list[Placed]:
        """The ``call``-th exchange of some ranks."""
        return await self.rounds.take(call, {part.rank: part for part in parts})

    def _handle(self, call: int, parts: dict[int, Asked]) -> list[Placed]:
        slots: list[list[np.ndarray]] = [[] for _ in parts]
        for step in _steps([part.writes for part in parts.values()]):
            placed = np.concatenate([self.index.remember(each) for each in joined([each for _, each in step])])
            ends = np.cumsum([len(request.ids) for _, request in step])
            for (place, _), own in zip(step, np.split(placed, ends[:-1]), strict=True):
                slots[place].append(own)
        self.staleness.count(call, parts)
        asked = [part.ids for part in parts.values()]
        if self.index.version and self.index.settings.sampling == "nn":
            pool = self.index.pool()
            checked = [None if ids is None else self.index.checked(ids) for ids in asked]
            return [(own, None, None if ids is None else pool) for own, ids in zip(slots, checked, strict=True)]
        draw = partial(self.index.draw, epoch=_epoch(part.epoch for part in parts.values()))
        return [(own, each, None) for own, each in zip(slots, for_ids(asked, draw), strict=True)]

    async def choose(self, ids: np.ndarray, epoch: int, near: Nearest) -> Draw:
        """The draw for the anchors ``ids``, from their nearest."""
        return self.index.draw(ids, epoch, near)

    async def refresh(self, epoch: int) -> dict[str, float]:
        """One refresh; calls that come meanwhile wait."""
        async with self.rounds.lock:
            return await asyncio.to_thread(self.clusterer.refresh, epoch)

    async def centroids(self) -> np.ndarray:
        """Those of the clustering in use."""
        async with self.rounds.lock:
            return self.index.clustering.centroids

    async def metrics(self, lost: int) -> dict[str, float]:
        """The counts since the last call, of which ``lost`` were not found in the stores; the staleness in steps."""
        async with self.rounds.lock:
            return {**self.index.metrics(reset=True, lost=lost), **self.staleness.metrics(self.rounds.strict)}

    def keep(self) -> Iterator[Piece]:
        """See `SavingServer.keep`; the piece waits for a clustering that is under way now."""
        return self.clusterer.snapshot()

    async def restore(self, folder: str, records: Records) -> None:
        """Reads the index; in use after `commit`. Raises ValueError where it does not fit."""
        self._read = await asyncio.to_thread(pieces.read_index, folder, records)
        self.index.check(self._read)

    async def commit(self) -> Whitening | None:
        """Brings what `restore` has read into use; returns the map by which references are compared, if any."""
        async with self.rounds.lock:
            await asyncio.to_thread(self.clusterer.forget)
            self.index.load_state_dict(self._read)
            self._read = {}
            return self.index.whitening if self.index.version else None

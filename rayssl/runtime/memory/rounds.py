"""What the actors of a memory share: the order in which all ranks' calls are applied, and errors that come back."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Generic, TypeVar

import ray

from rayssl import collectives
from rayssl.errors import UserError
from rayssl.training.pieces import Records

P = TypeVar("P")
A = TypeVar("A")

SILENT_S = 45.0  # an actor that says nothing for so long is stopped, or out of reach: it answers while it clusters, too
_TELL_S = 60.0  # between two lines about ranks that the others wait for


class _Round(Generic[P, A]):
    """A call of which some ranks' parts have come."""

    def __init__(self) -> None:
        self.parts: dict[int, P] = {}
        self.done: asyncio.Future[dict[int, A]] = asyncio.get_running_loop().create_future()
        self.began = time.monotonic()


class Rounds(Generic[P, A]):
    """The calls of ``world`` ranks on one event loop.

    ``handle`` applies what some ranks say in one call, given with its number and by rank in rank order, and answers
    each of them. Strict: it is given the parts of all ranks at once. Ahead: those that come together, as they come.
    ``lock`` is held meanwhile; hold it to keep all calls out.
    """

    def __init__(self, world: int, strict: bool, handle: Callable[[int, dict[int, P]], Sequence[A]]) -> None:
        self.world = world
        self.strict = strict
        self.lock = asyncio.Lock()
        self._handle = handle
        self._waiting: dict[int, _Round[P, A]] = {}

    async def take(self, call: int, parts: Mapping[int, P]) -> list[A]:
        """What the ranks in ``parts`` say in their ``call``-th call (from 1); the answers, in the same order."""
        if not self.strict:
            async with self.lock:
                answers = self._answers(call, parts)
            return [answers[rank] for rank in parts]
        waiting = self._waiting.setdefault(call, _Round())
        waiting.parts |= parts
        if len(waiting.parts) == self.world:
            del self._waiting[call]
            async with self.lock:
                try:
                    waiting.done.set_result(self._answers(call, waiting.parts))
                except Exception as error:  # of all ranks: nobody knows whose
                    waiting.done.set_exception(error)
        answers = await waiting.done
        return [answers[rank] for rank in parts]

    def missing(self) -> dict[int, float]:
        """The ranks that the others wait for, and for how many seconds. Only a strict memory makes ranks wait."""
        if not self._waiting:
            return {}
        waiting = self._waiting[min(self._waiting)]
        waited = time.monotonic() - waiting.began
        return {rank: waited for rank in range(self.world) if rank not in waiting.parts}

    def _answers(self, call: int, parts: Mapping[int, P]) -> dict[int, A]:
        ordered = {rank: parts[rank] for rank in sorted(parts)}
        return dict(zip(ordered, self._handle(call, ordered), strict=True))


def get(answers: Any) -> Any:
    """`ray.get`, which raises a `UserError` or ValueError of the actor as the actor raised it.

    It uses futures, because threads of actors with an event loop call it too, and there Ray warns about `ray.get`.
    """
    try:
        if isinstance(answers, ray.ObjectRef):
            return answers.future().result()
        return [future.result() for future in [answer.future() for answer in answers]]
    except (UserError, ValueError) as error:  # Ray's own class, a subclass of the wrapped error's
        cause = getattr(error, "cause", None)
        raise error if cause is None else cause from None


def answer_on_all_ranks(ask: Callable[[], ray.ObjectRef]) -> Any:
    """The answer to the call of an actor that ``ask`` makes on rank 0, on every rank, however long it takes."""
    asked: list[futures.Future[Any]] = [ask().future()] if collectives.rank() == 0 else []
    collectives.wait_for_rank_0(lambda seconds: not futures.wait(asked, seconds).not_done)
    return collectives.broadcast_object(asked[0].result() if asked else None)


def snapshot_of(actors: Sequence[Any]) -> Callable[[str], Records]:
    """See `rayssl.training.context.Checkpointable.snapshot`; the actors keep and write, all at once."""
    get([actor.snapshot.remote() for actor in actors])

    def save(folder: str) -> Records:
        written = get([actor.save.remote(folder) for actor in actors])
        return {name: record for records in written for name, record in records.items()}

    return save


def in_steps(figures: dict[str, float], ahead: int) -> dict[str, float]:
    """The figures of an actor, which counts requests, with ``staleness_steps`` in steps: ``ahead`` for a request."""
    return {**figures, "staleness_steps": figures["staleness_steps"] * ahead}


class Watch:
    """Looks whether the actors of a memory still answer, while a rank waits for them."""

    def __init__(self, actors: Sequence[Any], what: str) -> None:
        self._actors, self._what = actors, what
        self._told = time.monotonic()

    def nodes(self) -> list[str]:
        """The ids of the nodes on which the actors are."""
        return get([actor.__ray_call__.remote(_node) for actor in self._actors])  # type: ignore[no-any-return]

    def __call__(self) -> None:
        """Raises RuntimeError if an actor has not answered for `SILENT_S`. Tells which ranks are waited for."""
        asked = [actor.missing.remote() for actor in self._actors]
        ready, silent = ray.wait(asked, num_returns=len(asked), timeout=SILENT_S)
        if silent:
            raise RuntimeError(
                f"{self._what}: {len(silent)} of {len(asked)} actors have not answered for {SILENT_S:g} s: stopped, or "
                "their node cannot be reached"
            )
        now = time.monotonic()
        missing = next((each for each in ray.get(ready) if each), None)
        if missing and now - self._told >= _TELL_S and collectives.rank() not in missing:
            self._told = now
            first, seconds = min(missing.items())
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            sys.stderr.write(f"{self._what}: waits for rank {first}{others} since {seconds:.0f} s\n")


def _node(_: object) -> str:
    return str(ray.get_runtime_context().get_node_id())

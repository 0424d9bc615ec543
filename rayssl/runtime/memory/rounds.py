"""What the actors of a memory share: the order in which all ranks' calls are applied, and errors that come back.

Nothing here needs torch; see `rayssl.runtime.memory.servers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import ray

from rayssl.errors import UserError

P = TypeVar("P")
A = TypeVar("A")


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


def node_of(_: object) -> str:
    """The id of the node of an actor, which runs this; it finds it in this module, without torch."""
    return str(ray.get_runtime_context().get_node_id())

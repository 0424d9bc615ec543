"""What the actors of a memory share: the order in which all ranks' calls are applied, and errors that come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray

from rayssl.errors import UserError

T = TypeVar("T")


@dataclass
class _Call:
    apply: Callable[[], Any]
    answer: Callable[[Any], Any]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Rounds:
    """The calls of ``world`` ranks on one event loop.

    Strict: what all ranks give in one call is applied together, in rank order, before any rank is answered, and all are
    answered before the next call. Ahead: each call is applied as it comes; if ``ordered``, the calls of a rank in the
    order in which it made them, which Ray does not promise for coroutines: a rank must leave out no call then. ``lock``
    is held meanwhile; hold it to keep all calls out.
    """

    def __init__(self, world: int, strict: bool, ordered: bool = False) -> None:
        self.world = world
        self.strict = strict
        self.ordered = ordered
        self.lock = asyncio.Lock()
        self._waiting: dict[int, dict[int, _Call]] = {}
        self._early: dict[tuple[int, int], _Call] = {}  # ahead, by rank and call: calls that came before an earlier one
        self._done = [0] * world  # ahead: the last call of each rank

    async def take(self, call: int, rank: int, apply: Callable[[], T], answer: Callable[[T], Any]) -> Any:
        """The ``call``-th call (from 1) of ``rank``: what `answer` makes of what `apply` returns."""
        if not self.strict and not self.ordered:
            async with self.lock:
                return answer(apply())
        part = _Call(apply, answer)
        if not self.strict:
            self._early[rank, call] = part
            async with self.lock:
                while following := self._early.pop((rank, self._done[rank] + 1), None):
                    self._done[rank] += 1
                    _apply([following])
            return await part.done
        parts = self._waiting.setdefault(call, {})
        parts[rank] = part
        if len(parts) == self.world:
            del self._waiting[call]
            async with self.lock:
                _apply([parts[each] for each in sorted(parts)])
        return await part.done


def _apply(parts: list[_Call]) -> None:
    try:
        applied = [part.apply() for part in parts]
    except Exception as error:
        for part in parts:
            part.done.set_exception(error)
        return
    for part, result in zip(parts, applied, strict=True):
        try:
            part.done.set_result(part.answer(result))
        except Exception as error:
            part.done.set_exception(error)


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

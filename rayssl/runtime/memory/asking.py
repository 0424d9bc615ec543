"""How the ranks ask the actors of a memory: together, with patience, and with a look at whether they are alive."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import ray

from rayssl import collectives
from rayssl.runtime.memory.rounds import get, node_of
from rayssl.training.pieces import Records

SILENT_S = 45.0  # an actor that says nothing for so long is stopped, or out of reach: it answers while it clusters, too
_TELL_S = 60.0  # between two lines about ranks that the others wait for


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
        return get([actor.__ray_call__.remote(node_of) for actor in self._actors])  # type: ignore[no-any-return]

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

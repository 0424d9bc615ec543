"""Brings to the ranks that they shall leave: all of them save after the same step, and stop.

They leave for a SIGTERM or Ctrl-C of the driver, for a node that is being taken away, and to start again with more
workers. In the first case the command ends, in the others the driver starts the workers again.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from types import FrameType
from typing import Any

from rayssl.errors import Stopped

_POLL_S = 0.2
_DRAIN_POLL_S = 1.0


class _StopSignal:
    """An actor next to the driver that the ranks listen to. It also looks whether one of their nodes is leaving."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._why = ""
        self._watching: asyncio.Task[None] | None = None

    async def ring(self, why: str) -> None:
        """Tells the ranks to leave. The first reason stays."""
        self._why = self._why or why
        self._rung.set()

    async def wait(self) -> str:
        """Returns when it was rung, with the reason."""
        await self._rung.wait()
        return self._why

    async def why(self) -> str:
        """The reason for which it was rung; empty before."""
        return self._why

    async def here(self, nodes: list[str]) -> None:
        """``nodes``: the ids of those on which ranks and actors of the run are. It rings when one is to be drained."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(set(nodes)))

    async def _watch(self, nodes: set[str]) -> None:
        while not self._rung.is_set():
            leaving = nodes & set(await asyncio.to_thread(_draining))
            if leaving:
                await self.ring(f"node {min(leaving)[:12]} is being taken away")
            await asyncio.sleep(_DRAIN_POLL_S)


def _draining() -> list[str]:
    """The ids of the nodes that Ray drains. There is no public function for this; Ray Train calls this one too."""
    from ray._private.state import state

    try:
        return list(state.get_draining_nodes() or {})
    except Exception:  # the head does not answer now: it is asked again
        return []


class GracefulShutdown:
    """A context in which the first SIGTERM or SIGINT of this process rings ``bell``. The second one ends it at once.

    Only the main thread receives signals: in another thread (a trial of Ray Tune) only ``watch`` of `run` rings.
    ``listening``: whether anything may ring at all; without it ``bell`` is None.
    """

    def __init__(self, listening: bool = True) -> None:
        self.bell: Any = None
        self.received: signal.Signals | None = None
        self._main = threading.current_thread() is threading.main_thread()
        self._listening = listening or self._main
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if self._listening:
            import ray  # here, since `cluster.connect` must come before
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.bell = ray.remote(num_cpus=0, scheduling_strategy=here)(_StopSignal).remote()
        if self._main:
            self._before = {which: signal.signal(which, self._on) for which in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)
        if self.bell is not None:
            import ray

            if ray.is_initialized():
                ray.kill(self.bell)

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            text = "ended at once by a second signal; the same command resumes from the last checkpoint"
            raise Stopped(text, number)
        self.received = signal.Signals(number)

    def run(
        self, work: Callable[[], Any], say: Callable[[str], None], watch: Callable[[], str | None] = lambda: None
    ) -> Any:
        """Runs ``work`` in another thread; returns or raises what it does. ``watch`` may give a reason to leave.

        In the main thread Ray Train would handle SIGINT itself, and lose what was trained since the last checkpoint.
        """
        if self.bell is None:
            return work()
        done: futures.Future[Any] = futures.Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="rayssl-fit", daemon=True).start()
        rung, turns = False, 0
        while not done.done():
            futures.wait([done], _POLL_S)
            turns += 1
            if self.received is not None and not rung:
                rung = True
                self.bell.ring.remote(self.received.name)
                say(f"{self.received.name}: saves after the current step and then stops; a second signal stops at once")
            elif not rung and turns % 5 == 0 and (why := watch()) is not None:
                rung = True
                self.bell.ring.remote(why)
        return done.result()

    def why(self) -> str:
        """Why the ranks were told to leave; empty if they were not."""
        import ray

        if self.bell is None:
            return ""
        try:
            return str(ray.get(self.bell.why.remote(), timeout=10))
        except Exception:  # its node is gone, or all of the cluster
            return ""


def listen(bell: Any, nodes: Sequence[str] = ()) -> Callable[[], bool] | None:
    """A function that says, without waiting, whether ``bell`` has rung; None without a bell.

    ``nodes``: those of the whole run. Each call of `listen` leaves one call waiting at the actor.
    """
    if bell is None:
        return None
    bell.here.remote(list(nodes))
    future = bell.wait.remote().future()
    return lambda: bool(future.done() and future.exception() is None)

"""SIGTERM and Ctrl-C of the driver, brought to the ranks: they save at the same step, and leave."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from types import FrameType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayssl.errors import Stopped

_POLL_S = 0.2


class _StopSignal:
    """An actor next to the driver that the ranks listen to; it holds nothing but whether it was rung."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()


class GracefulShutdown:
    """A context in which the first SIGTERM or SIGINT of this process rings ``bell``, and the second one ends at once.

    Outside the main thread, where no signal arrives (a trial of Ray Tune), there is no bell.
    """

    def __init__(self) -> None:
        self.bell: Any = None
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.bell = ray.remote(num_cpus=0, scheduling_strategy=here)(_StopSignal).remote()
            self._before = {which: signal.signal(which, self._on) for which in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)
        if self.bell is not None and ray.is_initialized():
            ray.kill(self.bell)

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise Stopped("ended at once by a second signal; the same command goes on from the last checkpoint", number)
        self.received = signal.Signals(number)

    def run(self, work: Callable[[], Any], say: Callable[[str], None]) -> Any:
        """What ``work`` returns or raises. It runs in another thread, so that this one can hear: Ray Train takes
        SIGINT for itself where it is in the main thread, and throws away what was trained since a checkpoint.
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
        rung = False
        while not done.done():
            futures.wait([done], _POLL_S)
            if self.received is not None and not rung:
                rung = True
                self.bell.ring.remote()
                say(f"{self.received.name}: saving after the step under way, then leaving; once more leaves at once")
        return done.result()


def listen(bell: Any) -> Callable[[], bool] | None:
    """Whether ``bell`` has rung, told without waiting; None without a bell. Each listener is a call to the actor."""
    if bell is None:
        return None
    future = bell.wait.remote().future()
    return lambda: bool(future.done() and future.exception() is None)

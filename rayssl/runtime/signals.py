"""Brings the driver's SIGTERM and Ctrl-C to the ranks: all ranks save at the same step, and stop."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from types import FrameType
from typing import Any

from rayssl.errors import Stopped

_POLL_S = 0.2


class _StopSignal:
    """An actor next to the driver that the ranks listen to. Its only state is whether it was rung."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()


class GracefulShutdown:
    """A context in which the first SIGTERM or SIGINT of this process rings ``bell``. The second one ends it at once.

    Only the main thread receives signals. In another thread (a trial of Ray Tune) ``bell`` is None.
    """

    def __init__(self) -> None:
        self.bell: Any = None
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            import ray  # here, since `cluster.connect` must come before
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.bell = ray.remote(num_cpus=0, scheduling_strategy=here)(_StopSignal).remote()
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

    def run(self, work: Callable[[], Any], say: Callable[[str], None]) -> Any:
        """Runs ``work`` in another thread; returns or raises what it does.

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
        rung = False
        while not done.done():
            futures.wait([done], _POLL_S)
            if self.received is not None and not rung:
                rung = True
                self.bell.ring.remote()
                say(f"{self.received.name}: saves after the current step and then stops; a second signal stops at once")
        return done.result()


def listen(bell: Any) -> Callable[[], bool] | None:
    """A function that says, without waiting, whether ``bell`` has rung; None without a bell.

    Each call of `listen` leaves one call waiting at the actor.
    """
    if bell is None:
        return None
    future = bell.wait.remote().future()
    return lambda: bool(future.done() and future.exception() is None)

"""How a training stops inside an epoch: one process hears of it, and all ranks agree to leave at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from rayssl import collectives

_MOST = 256  # the most steps between two broadcasts, however short the steps are


class Stopping:
    """Whether all ranks shall leave. Rank 0 decides with ``heard``, about once in ``every_s`` seconds.

    Without ``heard`` no rank ever leaves, and there is no communication. With it, every rank must call `agreed`
    equally often. Rank 0 broadcasts its answer, and with it the number of calls until the next broadcast. A broadcast
    waits for the device: it costs too much to do so in every short step.
    """

    def __init__(self, heard: Callable[[], bool] | None = None, every_s: float = 1.0) -> None:
        self._heard = heard
        self._every_s = every_s
        self._calls, self._until = 0, 1
        self._began = time.perf_counter()

    def agreed(self) -> bool:
        """Whether to leave; the same on every rank. Every rank must call this before each step."""
        if self._heard is None:
            return False
        self._calls += 1
        if self._calls < self._until:
            return False
        now = time.perf_counter()
        fitting = int(self._every_s * self._calls / max(now - self._began, 1e-9))
        # at most twice as many as last time: after many fast steps, a slow clustering must not delay the next answer
        wait = 0 if self._heard() else max(1, min(fitting, 2 * self._until, _MOST))
        self._calls, self._until, self._began = 0, collectives.broadcast_object(wait), now
        return self._until == 0

"""Leaving in the middle of an epoch: what one process was told, agreed on by all ranks at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from rayssl import collectives

_MOST = 256  # steps between two questions, however short they are


class Stopping:
    """Whether all ranks shall leave: what rank 0 has ``heard``, which is asked about once in ``every_s`` seconds.

    Without ``heard`` nobody ever leaves, and no rank is asked. Otherwise every rank calls `agreed` equally often. Rank
    0 says with each answer after how many more calls it is asked again: a question is a broadcast that waits for the
    device, too dear for every short step.
    """

    def __init__(self, heard: Callable[[], bool] | None = None, every_s: float = 1.0) -> None:
        self._heard = heard
        self._every_s = every_s
        self._calls, self._until = 0, 1
        self._began = time.perf_counter()

    def agreed(self) -> bool:
        """The same on every rank; to be called by all of them before each step."""
        if self._heard is None:
            return False
        self._calls += 1
        if self._calls < self._until:
            return False
        now = time.perf_counter()
        fitting = int(self._every_s * self._calls / max(now - self._began, 1e-9))
        # at most twice as many: a slow clustering must not follow upon many fast steps unasked
        wait = 0 if self._heard() else max(1, min(fitting, 2 * self._until, _MOST))
        self._calls, self._until, self._began = 0, collectives.broadcast_object(wait), now
        return self._until == 0

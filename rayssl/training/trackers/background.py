"""A tracker that runs in its own thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Full, Queue
from threading import Thread
from typing import Any

from rayssl.training.trackers.base import Tracker

_WAITING = 10_000  # the most records that wait for a server


class Background(Tracker):
    """A tracker whose server may be slow or gone. Training never waits for it, and never ends because of it.

    ``start`` opens the tracker in its own thread. Only numbers are passed to it, with their ``time`` (Unix seconds).
    An error is reported once through ``say``, and the tracker ends. At most ``waiting`` records wait for the server;
    further ones are dropped, and this is reported once too.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Tracker],
        say: Callable[[str], None],
        *,
        waiting: int = _WAITING,
        patience_s: float = 30.0,
    ) -> None:
        self._name, self._start, self._say, self._patience_s = name, start, say, patience_s
        self._records: Queue[tuple[str, int, dict[str, float]] | bool] = Queue(waiting)
        self._lost = self._over = False
        self._thread = Thread(target=self._serve, name=f"rayssl-{name}", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Returns at once."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if not numbers or self._over:
            return
        try:
            self._records.put_nowait((kind, step, {"time": time.time(), **numbers}))
        except Full:
            if not self._lost:
                self._say(f"{self._name}: the server is too slow; figures are missing there from step {step} on")
            self._lost = True

    def close(self, *, failed: bool = False) -> None:
        """Waits until the server has every record, at most ``patience_s`` seconds."""
        if self._over:
            return
        self._over = True
        try:
            self._records.put(failed, timeout=self._patience_s)
        except Full:
            return
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._say(f"{self._name}: not all was sent in {self._patience_s:g} s; the last figures are missing there")

    def _serve(self) -> None:
        try:
            tracker = self._start()
            while not isinstance(record := self._records.get(), bool):
                kind, step, numbers = record
                tracker.write(kind, step, **numbers)
            tracker.close(failed=record)
        except BaseException as error:  # some of these packages raise SystemExit
            self._over = True
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._say(f"{self._name}: {lines[0][:300]}; training continues without it")

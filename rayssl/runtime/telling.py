"""What the preparation of a corpus tells a screen: how much is listed, planned, examined and prepared."""

from __future__ import annotations

import time
from collections.abc import Callable

from rayssl.progress import Phase, Preparing, Screen

_EVERY_S = 0.5  # between two events of one kind of work: a bar moves


class PrepareTeller:
    """Tells ``screen`` of the corpus ``name``."""

    def __init__(self, screen: Screen, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._name, self._clock = screen, name, clock
        self._told = -_EVERY_S
        self._what = ""

    def at(
        self,
        what: str,
        done: int,
        total: int | None,
        unit: str,
        *,
        hours: float | None = None,
        rejected: int = 0,
    ) -> None:
        """``done`` of ``total`` (None: not known) of the work ``what``, see `Preparing`. Most calls show nothing."""
        now = self._clock()
        if what == self._what and done != total and now - self._told < _EVERY_S:
            return
        self._told, self._what = now, what
        self._screen.show(Preparing(what, self._name, done, total, unit, hours, rejected))

    def ended(self, what: str, began: float) -> None:
        """``what`` of this corpus has ended; it began at ``began`` of the clock."""
        self._screen.show(Phase(f"{self._name}: {what}", self._clock() - began))

    def now(self) -> float:
        """Seconds of the clock."""
        return self._clock()

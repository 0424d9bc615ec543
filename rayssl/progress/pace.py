"""How long a training still takes, from the steps that were seen."""

from __future__ import annotations

_MEMORY_S = 60.0  # older steps count less: half as much after so long
_FIRST_S = 8.0  # nothing is said before so many seconds of steps: the first ones are slow


class Pace:
    """Seconds a step, as an average that forgets, and what of an epoch is spent on other things than steps."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] = (0.0, 0)
        self._seconds = self._steps = 0.0
        self._away, self._epochs = 0.0, 0  # seconds of other things, since the first step; epochs that have ended

    def saw(self, now: float, step: int) -> None:
        """At ``now`` (seconds of a clock) ``step`` steps were done."""
        if self._first is None or step < self._last[1]:  # the run has resumed from a checkpoint before
            self._first = self._last = now, step
            self._seconds = self._steps = 0.0
            return
        seconds, steps = now - self._last[0], step - self._last[1]
        if steps == 0:
            return
        keep = 0.5 ** (seconds / _MEMORY_S)
        self._seconds = keep * self._seconds + seconds
        self._steps = keep * self._steps + steps
        self._last = now, step

    def away(self, seconds: float) -> None:
        """``seconds`` until now were spent on something else: a clustering, a pass that fills the memory."""
        if self._first is not None:
            self._away += seconds
            self._last = self._last[0] + seconds, self._last[1]

    def epoch_ended(self) -> None:
        """An epoch has ended."""
        self._epochs += 1

    def left(self, now: float, steps: int, epochs: int = 0) -> float | None:
        """Seconds for ``steps`` more steps in ``epochs`` more whole epochs; None while too little was seen."""
        if self._first is None or not self._steps or now - self._first[0] - self._away < _FIRST_S:
            return None
        away = self._away / self._epochs if self._epochs else 0.0
        return steps * self._seconds / self._steps + epochs * away

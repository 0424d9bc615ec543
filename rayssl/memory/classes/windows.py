"""How often each class was the pseudo-label, in windows of steps (DASO; Oh, Kim and Kweon, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rayssl.memory.pieces import check_array

_KEPT = 3  # windows: the open one, the last closed one, and the one before it for late recalls


class Windows:
    """Counts of C classes in windows of ``length`` steps; a step sees the counts of the window before its own.

    The first call for a later step closes a window. Late counts are still added to the last closed window: those of a
    slow rank are missing there for a few steps. Later than that they are dropped, and counted in ``dropped``. A step of
    the last closed window sees the window before that one. Before the first window, and for older steps, there are
    zeros.
    """

    def __init__(self, classes: int, length: int) -> None:
        self.length = length
        self.dropped = 0
        self._open = 0  # number of the window of the latest step
        self._counts = np.zeros((_KEPT, classes), dtype=np.int64)  # of the windows _open, _open - 1, _open - 2

    def add(self, step: int, counts: np.ndarray | None) -> None:
        """Adds ``counts [C]`` to the window of ``step``; None only closes the windows before it."""
        age = self._age(step)
        if counts is not None and age <= 1:
            self._counts[age] += counts
        elif counts is not None:
            self.dropped += int(counts.sum())

    def before(self, step: int) -> np.ndarray:
        """The counts of the window before that of ``step``: int64 ``[C]``."""
        age = self._age(step) + 1
        return self._counts[age].copy() if age < _KEPT else np.zeros_like(self._counts[0])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that later calls depend on, as views."""
        numbers = {"open": self._open, "length": self.length, "dropped": self.dropped}
        state = {f"windows.{name}": np.array(value, dtype=np.int64) for name, value in numbers.items()}
        return {"windows.counts": self._counts, **state}

    def check(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError, naming what does not fit, unless `load_state_dict` could take ``state``."""
        expected = self.state_dict()
        missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
        if missing or unexpected:
            raise ValueError(f"memory state: missing {missing}, unexpected {unexpected}")
        for name, own in expected.items():
            check_array(name, state[name], own.dtype, own.shape)
            if (state[name] < 0).any():
                raise ValueError(f"memory state: '{name}' has a negative number")
        if state["windows.length"] != self.length:
            raise ValueError(f"memory state: windows of {state['windows.length']} steps, expected {self.length}")

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues where ``state``, which `check` accepts, was taken."""
        self._counts = state["windows.counts"].copy()
        self._open, self.dropped = int(state["windows.open"]), int(state["windows.dropped"])

    def _age(self, step: int) -> int:
        """How many windows ago that of ``step`` was open; opens it where it is newer than all before."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        number = int(step) // self.length
        passed = min(number - self._open, _KEPT)
        if passed > 0:  # skipped windows are closed without counts
            self._counts[passed:] = self._counts[: _KEPT - passed]
            self._counts[:passed] = 0
            self._open = number
        return self._open - number

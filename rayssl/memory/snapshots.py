"""Rows as they were at one moment, read while others are written: no copy of all of them.

Whoever writes tells the snapshot before, and the snapshot keeps the old values of those rows that it has not handed out
yet. So it needs room for the rows that change while it is read, and for nothing else.
"""

from __future__ import annotations

from threading import Lock

import numpy as np


class RowSnapshot:
    """``rows [n, ...]`` as they are now. One thread takes them, block after block; another may write meanwhile."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._lock = Lock()
        self._kept = np.zeros(len(rows), dtype=bool)
        self._old: list[tuple[np.ndarray, np.ndarray]] = []  # places in ascending order, and their rows
        self._taken = 0

    def before_write(self, places: np.ndarray) -> None:
        """Keeps what is in ``places [B]`` now; to be called before these rows change."""
        with self._lock:
            fresh = np.unique(places)
            fresh = fresh[fresh >= self._taken]
            fresh = fresh[~self._kept[fresh]]
            if len(fresh):
                self._kept[fresh] = True
                self._old.append((fresh, self._rows[fresh]))

    def take(self, start: int, stop: int) -> np.ndarray:
        """A copy of the rows ``start`` to ``stop - 1`` as they were; each block must begin where the last one ended."""
        with self._lock:
            assert start == self._taken, "blocks of a snapshot must be taken in their order"
            block = self._rows[start:stop].copy()
            later = []
            for places, rows in self._old:
                first, end = np.searchsorted(places, (start, stop))
                block[places[first:end] - start] = rows[first:end]
                if end < len(places):
                    later.append((places[end:], rows[end:]))
            self._old = later
            self._taken = stop
            return block

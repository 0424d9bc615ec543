"""A cache of shard rows: a data task keeps the rows of a labelled stream for the next task in its process.

The few labelled clips are scattered over all shards, and their stream starts again and again. Without the cache every
pass would read the whole corpus for them. The size is bounded. When the cache is full, other rows are read each time.
It never drops its oldest rows: the stream needs those rows last, so such a cache would never have a hit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from rayssl.data.row_groups import ShardRows

_MOST = 128 << 20  # bytes per process


class ShardCache:
    """Rows by key, with at most ``most`` bytes of audio in all. Several threads may use it."""

    def __init__(self, most: int = _MOST) -> None:
        self._left = most
        self._held: dict[Hashable, ShardRows] = {}
        self._lock = threading.Lock()

    def rows(self, key: Hashable, make: Callable[[], ShardRows]) -> ShardRows:
        """The rows of ``key``. If they are not in the cache, ``make`` makes them; they are kept if there is room."""
        if key in self._held:
            return self._held[key]
        made = make()
        with self._lock:
            if key not in self._held and made.nbytes <= self._left:
                self._left -= made.nbytes
                self._held[key] = made
        return made


LABELLED = ShardCache()

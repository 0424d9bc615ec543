"""A cache of shard rows: a data task keeps the rows of a labelled stream for the next task in its process.

The few labelled clips are scattered over all shards, and their stream starts again and again. Without the cache every
pass would read the whole corpus for them. The size is bounded. When the cache is full, other rows are read each time.
It never drops its oldest rows: the stream needs those rows last, so such a cache would never have a hit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pyarrow as pa

_MOST = 128 << 20  # bytes per process


class ShardCache:
    """Tables by key, with at most ``most`` bytes in all."""

    def __init__(self, most: int = _MOST) -> None:
        self._left = most
        self._tables: dict[Hashable, pa.Table] = {}

    def table(self, key: Hashable, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of ``key``. If it is not in the cache, ``make`` makes it; it is kept if there is room for it."""
        if key in self._tables:
            return self._tables[key]
        made = make()
        if made.nbytes <= self._left:
            self._left -= made.nbytes
            self._tables[key] = made
        return made


LABELLED = ShardCache()

"""Rows of shards that a data task keeps for the next one in its process: those of a labelled stream.

A few labelled clips lie scattered over all shards, and their stream goes round and round: without this each round would
read the whole corpus again for them. What is kept is bounded; what comes after is read each time, for a cache that
forgot its oldest rows would hit nothing in a stream that comes back to them last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pyarrow as pa

_MOST = 128 << 20  # bytes in one process


class ShardCache:
    """Tables by key, up to ``most`` bytes of them."""

    def __init__(self, most: int = _MOST) -> None:
        self._left = most
        self._tables: dict[Hashable, pa.Table] = {}

    def table(self, key: Hashable, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of ``key``, made if it is not kept, and kept from then on if there is room for it."""
        if key in self._tables:
            return self._tables[key]
        made = make()
        if made.nbytes <= self._left:
            self._left -= made.nbytes
            self._tables[key] = made
        return made


LABELLED = ShardCache()

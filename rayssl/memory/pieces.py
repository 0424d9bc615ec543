"""How rows are cut into contiguous pieces, and which pieces a store holds.

The number of pieces does not depend on the number of stores. Pieces are written to storage and read again, and sums
over rows are made of sums over pieces, so neither files nor sums depend on the number of stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

_MOST = 64
_LEAST = 4  # so that a small memory can be shared by a few stores, too
_ROWS = 4096  # of a piece, before there are more of them

Kind = Literal["index", "references", "positives", "classes"]


@dataclass(frozen=True)
class Piece:
    """A part of a memory's state: ``arrays`` by name; those of rows, or classes, are of ``first`` to ``end - 1``.

    Rows at the end that have never been written are left out, so that an array may hold fewer than ``end - first``.
    """

    kind: Kind
    number: int
    first: int
    end: int
    arrays: dict[str, np.ndarray]


Read: TypeAlias = Callable[[Kind, int, int], Iterable[Piece]]  # the pieces of a kind with rows in first..end - 1


def cuts(total: int) -> np.ndarray:
    """Where the pieces of ``total`` rows begin, and the end of the last: int64 ``[pieces + 1]``."""
    count = min(total, max(_LEAST, min(_MOST, total // _ROWS)))
    bounds: np.ndarray = np.arange(count + 1, dtype=np.int64) * total // count
    return bounds


def pieces_of(bounds: np.ndarray, shard: int, shards: int) -> range:
    """Numbers of the pieces that store ``shard`` of ``shards`` holds; ``bounds`` as of `cuts`."""
    count = len(bounds) - 1
    return range(shard * count // shards, (shard + 1) * count // shards)


def limits(total: int, shards: int) -> np.ndarray:
    """The first row of each of ``shards`` stores, and the end of the last: int64 ``[shards + 1]``."""
    bounds = cuts(total)
    starts = [bounds[pieces_of(bounds, shard, shards).start] for shard in range(shards)]
    return np.array([*starts, total], dtype=np.int64)


def check_array(name: str, given: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Raises ValueError, naming the array, unless ``given`` is of this type and shape."""
    if given.dtype != dtype or given.shape != shape:
        raise ValueError(f"memory state: '{name}' is {given.dtype} {given.shape}, expected {dtype} {shape}")

"""What several ranks say in one step, as if one had said it: a call of few rows costs as much as one of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

D = TypeVar("D")
"""A dataclass of arrays with the same first dimension; some may be None."""


def joined(parts: Sequence[D]) -> list[D]:
    """``parts``, in order, as one. As they are where some have a field and others have not."""
    if len(parts) < 2:
        return list(parts)
    columns = [[getattr(part, each.name) for part in parts] for each in fields(parts[0])]  # type: ignore[arg-type]
    if any(len({array is None for array in column}) > 1 for column in columns):
        return list(parts)
    return [type(parts[0])(*map(_whole, columns))]


def divided(whole: D, sizes: Sequence[int]) -> list[D]:
    """The parts of ``whole``, in order, of so many rows each."""
    ends = list(accumulate(sizes))
    arrays = [getattr(whole, each.name) for each in fields(whole)]  # type: ignore[arg-type]
    return [
        type(whole)(*(None if array is None else array[end - size : end] for array in arrays))
        for size, end in zip(sizes, ends, strict=True)
    ]


def for_ids(asked: Sequence[np.ndarray | None], answer: Callable[[np.ndarray], D]) -> list[D | None]:
    """``answer`` for the ids of all that ask, in one call; of each its own part, None where nothing is asked."""
    ids = [each for each in asked if each is not None]
    if not ids:
        return [None] * len(asked)
    parts = iter(divided(answer(np.concatenate(ids)), [len(each) for each in ids]))
    return [None if each is None else next(parts) for each in asked]


def _whole(arrays: list[Any]) -> np.ndarray | None:
    if arrays[0] is None:
        return None
    some = [array for array in arrays if len(array)]  # an empty one may have no width
    return np.concatenate(some) if some else arrays[0]

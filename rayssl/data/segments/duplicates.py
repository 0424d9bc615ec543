"""Which segments come twice. What is found does not depend on the order in which recordings were examined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayssl.data.segments.fingerprints import Print, agreement, shifts

_LEAST = 0.75  # of the shorter segment must be in the other one
_CROWD = 64  # segments with the same key: more of them share a hum, or digital silence


def near(prints: Sequence[Print]) -> dict[int, int]:
    """The near duplicates among ``prints``, in order of preference: of a pair, the first one stays.

    Returns:
        The number of each duplicate, with that of the segment that it is a copy of. This one stays.
    """
    found: dict[int, int] = {}
    for one, other in _candidates(prints):
        if one in found or other in found:
            continue
        if _is_copy(prints[one], prints[other]):
            found[other] = one
    return found


def _is_copy(one: Print, other: Print) -> bool:
    return any(agreement(one, other, shift) >= _LEAST for shift in shifts(one, other))


def _candidates(prints: Sequence[Print]) -> list[tuple[int, int]]:
    """Pairs with a key in common, ascending."""
    if not prints:
        return []
    keys = np.concatenate([each.keys for each in prints])
    owners = np.repeat(np.arange(len(prints)), [len(each.keys) for each in prints])
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    bounds = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    pairs = list[np.ndarray]()
    for size in range(2, _CROWD + 1):  # all groups of one size at a time
        begins = bounds[:-1][np.diff(bounds) == size]
        if not len(begins):
            continue
        members = owners[begins[:, None] + np.arange(size)]
        first, second = np.triu_indices(size, 1)
        pairs.append(np.stack([members[:, first].ravel(), members[:, second].ravel()], axis=1))
    if not pairs:
        return []
    both = np.unique(np.concatenate(pairs), axis=0)
    return [(int(one), int(other)) for one, other in both[both[:, 0] != both[:, 1]]]

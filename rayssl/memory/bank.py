"""What is remembered of each utterance: its reference (for clustering) and its last positive (for sampling).

Both are indexed by the dense utterance id 0..N-1 and know nothing of clusters. All updates are vectorised.
"""

from __future__ import annotations

import numpy as np

_EPS = 1e-12


def unit_rows(x: np.ndarray) -> np.ndarray:
    """A float32 copy of ``x [n, D]`` with rows of L2 norm 1; zero rows stay zero."""
    rows = np.array(x, dtype=np.float32)
    rows /= np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), _EPS)[:, None]
    return rows


class References:
    """One L2-normalised row per utterance, and the labels seen with it.

    ``rows [N, D]`` (float16 or float32), ``filled [N]`` bool, ``speakers, recordings [N]`` int32, -1 unknown.
    """

    def __init__(self, utterances: int, dim: int, dtype: str = "float16") -> None:
        if dtype not in ("float16", "float32"):
            raise ValueError(f"reference_dtype must be float16 or float32, got {dtype!r}")
        self.rows = np.zeros((utterances, dim), dtype=dtype)
        self.filled = np.zeros(utterances, dtype=bool)
        self.speakers = np.full(utterances, -1, dtype=np.int32)
        self.recordings = np.full(utterances, -1, dtype=np.int32)

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Stores ``rows [B, D]`` (normalised here) for ``ids [B]``; of equal ids the last row stays."""
        self.rows[ids] = unit_rows(rows)
        self.filled[ids] = True

    def label(self, ids: np.ndarray, speakers: np.ndarray | None, recordings: np.ndarray | None) -> None:
        """Stores the labels ``[B]`` that are known (>= 0); an unknown one never erases a known one."""
        for kept, given in ((self.speakers, speakers), (self.recordings, recordings)):
            if given is not None:
                known = np.asarray(given) >= 0
                kept[ids[known]] = given[known]


class PositivesQueue:
    """The positives of the ``capacity`` utterances remembered most recently, each utterance once.

    First in, first out by the time an utterance was *last* remembered: remembering it again replaces its row and moves
    it to the young end, without spending a second place. Within one call rows count as remembered one after the other,
    so of equal ids the last wins. A queue as large as the corpus hence never forgets anything.

    ``rows [capacity, D]`` float32, ``ids [capacity]`` int64 (-1 empty), ``slot [N]`` int32: the place of an utterance,
    -1 when absent. Which slot an utterance has means nothing; its age does.
    """

    def __init__(self, utterances: int, capacity: int, dim: int) -> None:
        self.capacity = min(capacity, utterances)
        self.rows = np.zeros((self.capacity, dim), dtype=np.float32)
        self.ids = np.full(self.capacity, -1, dtype=np.int64)
        self.slot = np.full(utterances, -1, dtype=np.int32)
        self.size = 0
        self._written = np.zeros(self.capacity, dtype=np.int64)
        self._clock = 0
        self._by_age = np.zeros(0, dtype=np.int64)
        self._sorted_at = 0

    def push(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Remembers ``rows [B, D]`` as the positives of ``ids [B]``, in row order."""
        last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
        # of more ids than there are places, the first would be pushed out by the last of the same call
        keep = np.sort(last)[-self.capacity :]
        ids, rows = ids[keep], rows[keep]
        slots = self.slot[ids].astype(np.int64)
        fresh = slots < 0
        # stamped before anything is evicted: what this call remembers again is not old any more
        self._written[slots[~fresh]] = self._clock
        slots[fresh] = self._make_room(int(fresh.sum()))
        self.ids[slots] = ids
        self.rows[slots] = rows
        self.slot[ids] = slots
        self._written[slots] = self._clock + np.arange(len(ids))
        self._clock += len(ids)

    def by_age(self) -> np.ndarray:
        """Slots of the present utterances, oldest first."""
        return np.argsort(self._written[: self.size], kind="stable")

    def replace(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Holds exactly ``rows [n, D]`` of the distinct ``ids [n]``, oldest first; ``n <= capacity``."""
        self.rows[:] = 0
        self.ids[:] = -1
        self.slot[:] = -1
        self.size = self._clock = self._sorted_at = 0
        self._by_age = np.zeros(0, dtype=np.int64)
        self.push(ids, rows)

    def _make_room(self, count: int) -> np.ndarray:
        """``count`` slots to be overwritten: unused ones first, then those of the oldest utterances, which leave."""
        unused = np.arange(self.size, min(self.size + count, self.capacity))
        freed = self._oldest(count - len(unused))
        self.slot[self.ids[freed]] = -1
        self.size += len(unused)
        return np.concatenate([unused, freed])

    def _oldest(self, count: int) -> np.ndarray:
        """The ``count`` oldest slots. One sort serves about ``capacity`` evictions: slots written since are skipped."""
        chosen = np.zeros(0, dtype=np.int64)
        while len(chosen) < count:
            if not len(self._by_age):
                self._by_age, self._sorted_at = self.by_age(), self._clock
            window = self._by_age[: 2 * count]
            old = np.flatnonzero(self._written[window] < self._sorted_at)[: count - len(chosen)]
            complete = len(chosen) + len(old) == count
            self._by_age = self._by_age[old[-1] + 1 if complete else len(window) :]
            self._written[window[old]] = self._clock
            chosen = np.concatenate([chosen, window[old]])
        return chosen

"""What is known of each utterance without its rows: labels, whether it has a reference, its place among the positives.

Indexed by the dense utterance id 0..N-1, in flat arrays. All updates are vectorised.
"""

from __future__ import annotations

import numpy as np


class Utterances:
    """Which utterances have a reference, ``filled [N]`` bool, and the labels seen: ``speakers, recordings [N]`` int32.

    -1 is an unknown label.
    """

    def __init__(self, utterances: int) -> None:
        self.filled = np.zeros(utterances, dtype=bool)
        self.speakers = np.full(utterances, -1, dtype=np.int32)
        self.recordings = np.full(utterances, -1, dtype=np.int32)

    def label(self, ids: np.ndarray, speakers: np.ndarray | None, recordings: np.ndarray | None) -> bool:
        """Stores the labels ``[B]`` that are known (>= 0); an unknown one never erases a known one.

        Returns whether any has changed.
        """
        changed = False
        for kept, given in ((self.speakers, speakers), (self.recordings, recordings)):
            if given is not None:
                known = np.asarray(given) >= 0
                changed |= not np.array_equal(kept[ids[known]], given[known])
                kept[ids[known]] = given[known]
        return changed


def ages_of(written: np.ndarray) -> np.ndarray:
    """For each slot, how many utterances are older: int32 ``[size]``. ``written``: see `PositivesQueue.written`."""
    ages = np.empty(len(written), dtype=np.int32)
    ages[np.argsort(written, kind="stable")] = np.arange(len(written), dtype=np.int32)
    return ages


class PositivesQueue:
    """Which slots hold the positives of the ``capacity`` utterances remembered most recently, each utterance once.

    First in, first out by the time an utterance was *last* remembered. Remembering it again replaces its row and moves
    it to the end of the queue; it never takes a second place. Within one call, rows count as remembered one after the
    other, so of equal ids the last wins. A queue as large as the corpus never forgets anything.

    ``ids [capacity]`` int32 (-1 empty), ``slot [N]`` int32: the place of an utterance, -1 when absent. The number of
    a slot means nothing; the age of its utterance does. The slots in use are 0 to ``size - 1``.
    """

    def __init__(self, utterances: int, capacity: int) -> None:
        self.capacity = min(capacity, utterances)
        self.ids = np.full(self.capacity, -1, dtype=np.int32)
        self.slot = np.full(utterances, -1, dtype=np.int32)
        self.size = 0
        self._written = np.zeros(self.capacity, dtype=np.int64)
        self._clock = 0
        self._forget_order()

    def push(self, ids: np.ndarray) -> np.ndarray:
        """Remembers ``ids [B]``, in order; the slot of each, int64 ``[B]``, -1 where its row is not kept.

        A row is not kept where its id comes again later in the call, or where later ids have pushed it out.
        """
        last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
        # of more ids than there are places, the first would be pushed out by the last of the same call
        keep = np.sort(last)[-self.capacity :]
        kept = ids[keep]
        slots = self.slot[kept].astype(np.int64)
        fresh = slots < 0
        # stamped before anything is evicted: what this call remembers again is not old any more
        self._written[slots[~fresh]] = self._clock
        slots[fresh] = self._make_room(int(fresh.sum()))
        self.ids[slots] = kept
        self.slot[kept] = slots
        self._written[slots] = self._clock + np.arange(len(kept))
        self._clock += len(kept)
        found = np.full(len(ids), -1, dtype=np.int64)
        found[keep] = slots
        return found

    def by_age(self) -> np.ndarray:
        """Slots of the present utterances, oldest first: int32 ``[size]``."""
        return np.argsort(self._written[: self.size], kind="stable").astype(np.int32)

    def written(self) -> np.ndarray:
        """When the utterance in each slot in use was remembered, on a clock of its own: int64 ``[size]``, a copy."""
        return self._written[: self.size].copy()

    def replace(self, ids: np.ndarray, ages: np.ndarray) -> None:
        """Holds exactly the distinct ``ids [n]`` in slots 0 to n - 1, of the distinct ``ages [n]``; n <= capacity."""
        self.size = self._clock = len(ids)
        self.ids[:] = -1
        self.slot[:] = -1
        self.ids[: self.size] = ids
        self.slot[ids] = np.arange(self.size, dtype=np.int32)
        self._written[: self.size] = ages
        self._forget_order()

    def _forget_order(self) -> None:
        self._by_age = np.zeros(0, dtype=np.int32)
        self._sorted_at = 0

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

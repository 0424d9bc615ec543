"""The order of an epoch: which utterance comes after which, before neighbours are mixed by `rayssl.batches.plan`.

The shards are put in a random order and divided into windows: as few as possible, of at most ``shuffle_shards`` shards,
and equal but for one shard (a last window of one shard would not be mixed). A shard is a sequence of row groups of a
few utterances (`Manifest.group_rows`), which storage can read alone. Inside a window, all row groups are permuted
together. So neighbours in the order come from all shards of the window, and still every part of a shard is read once in
an epoch. The order follows from (seed, epoch) and the manifest by arithmetic: every process can compute it, and nothing
is remembered.

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayssl.batches.selection import Selection
from rayssl.data.shards import Manifest

_ORDER, _GROUPS = 1, 5  # purposes, see `rayssl.batches.plan`


@dataclass(frozen=True)
class ShardRange:
    """Entries ``[start, stop)`` of a shard, in the order of the file.

    The entries of a shard are its rows; with a selection the selected rows; with class-aware sampling some of them
    several times (`Selection.entries`). ``lap``: how often the epoch's order was repeated before.
    """

    shard: int
    start: int
    stop: int
    lap: int = 0


@dataclass(frozen=True)
class EpochOrder:
    """The row groups of an epoch in order: entries ``[start, stop)`` of ``shard``; int64 ``[n]`` each.

    ``ends [n]``: the number of entries up to the end of each.
    """

    shard: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    ends: np.ndarray

    @property
    def entries(self) -> int:
        """The number of utterances in the order, counting those that come several times."""
        return int(self.ends[-1])

    def ranges(self, start: int, stop: int) -> tuple[ShardRange, ...]:
        """The entries ``[start, stop)`` of the order; after its last entry the order begins again."""
        found = []
        while start < stop:
            lap, inside = divmod(start, self.entries)
            at = int(np.searchsorted(self.ends, inside, side="right"))
            skipped = inside - (int(self.ends[at - 1]) if at else 0)
            first = int(self.start[at]) + skipped
            last = min(int(self.stop[at]), first + stop - start)
            found.append(ShardRange(int(self.shard[at]), first, last, lap))
            start += last - first
        return tuple(found)


def epoch_order(
    manifest: Manifest, *, seed: int, epoch: int, shuffle_shards: int, selection: Selection | None = None
) -> EpochOrder:
    """The order of ``epoch``, for the rows of ``selection`` or for all rows.

    ``shuffle_shards``: the most shards in a window. A shard from before row groups existed is one group.
    """
    purpose = selection.purpose if selection is not None else ()
    drawn = np.random.default_rng([seed, _ORDER, epoch, *purpose]).permutation(len(manifest.shards))
    shard, start, stop = _groups(manifest, drawn, seed, epoch, selection)
    place = np.empty(len(drawn), np.int64)
    held = drawn[np.isin(drawn, shard)]  # shards without an entry fill no window
    place[held] = np.arange(len(held))
    windows = -(-len(held) // shuffle_shards)
    random = np.random.default_rng([seed, _GROUPS, epoch, *purpose]).random(len(shard))
    order = np.lexsort((random, place[shard] * windows // len(held)))
    shard, start, stop = shard[order], start[order], stop[order]
    return EpochOrder(shard, start, stop, np.cumsum(stop - start))


def _groups(
    manifest: Manifest, drawn: np.ndarray, seed: int, epoch: int, selection: Selection | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row groups that have entries, shard after shard as ``drawn``: shard, first and last entry."""
    rows = np.array([shard.rows for shard in manifest.shards], np.int64)
    size = manifest.group_rows or int(rows.max())
    if selection is None:
        counts = -(-rows[drawn] // size)
        shard = np.repeat(drawn, counts)
        start = size * (np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts))
        return shard, start, np.minimum(start + size, rows[shard])
    shards, starts, stops = [], [], []
    for k in map(int, drawn):
        if not selection.counts[k]:
            continue
        at, _, _ = selection.entries(k, seed, epoch)
        inside = np.bincount(at // size)
        ends = np.cumsum(inside)[inside > 0]
        shards.append(np.full(len(ends), k, np.int64))
        starts.append(ends - inside[inside > 0])
        stops.append(ends)
    return np.concatenate(shards), np.concatenate(starts), np.concatenate(stops)

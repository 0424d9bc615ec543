"""Which utterances form which batch: the order of every epoch, cut into units of work that one task can read alone.

The order of an epoch is a function of (seed, epoch) and the manifest: shards in a drawn order, the rows of each shard
permuted. Global batch `t` of an epoch is rows ``[t*G, (t+1)*G)`` of that order and rank `r` of `W` takes the `r`-th
``G/W`` of them, so one rank and W ranks at the same global batch `G` see the same batches, and a position inside an
epoch is one number that means the same after any restart. The last ``N mod G`` rows of an epoch's order are left out;
they are others in every epoch.

With a `Selection` all this holds for its rows: shards without any are skipped, the selected rows of each are permuted.
Two streams, labelled and unlabelled, are two plans, each with its own batch size and cursor; the shorter one cycles
(`cycle_position`, `plan_steps`). With ``wrap`` an epoch has ``ceil(N/G)`` batches: all rows of the order, then its
first ones again, as often as it takes to make the last batch whole, even where N < G. A class-aware selection has
another N in every epoch, but every epoch the same number of batches, ``floor`` or ``ceil`` of the expected N over G:
rows beyond the last batch are left out, and missing ones are, with or without ``wrap``, the first ones of the order.

Neither torch nor ray is imported here: these functions run inside data tasks, whose cold start they would dominate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np

from rayssl.batches.selection import Selection
from rayssl.data import shards
from rayssl.errors import CorpusError

_ORDER, ROWS = 1, 2  # purposes, so that no two draws share a key; 3 is `rayssl.views.reading`'s, 4 `selection`'s
TURN_BIT = 44  # keys of an utterance's second turn in an epoch are those of id + 2**44


@dataclass(frozen=True)
class Cursor:
    """The next batch to train on: ``step`` counts from 0 inside ``epoch``, which counts from 0."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class ShardRange:
    """Rows ``[start, stop)`` of the permuted order of one shard; ``lap`` counts how often the epoch's order wrapped."""

    shard: int
    start: int
    stop: int
    lap: int = 0


@dataclass(frozen=True)
class ReadUnit:
    """Consecutive global batches that one task reads: ``steps`` of them from ``first_step`` of ``epoch``.

    With ``fill`` they are not trained on: they belong to the pass over the corpus that comes before the epoch.
    """

    epoch: int
    first_step: int
    steps: int
    pieces: tuple[ShardRange, ...]
    fill: bool = False


def steps_per_epoch(rows: int, batch: int, selection: Selection | None = None, *, wrap: bool = False) -> int:
    """Global batches in an epoch of ``rows``, or of the ``selection``: whole ones, with ``wrap`` also one made whole.

    Raises `CorpusError` when there is not even one (an empty epoch).
    """
    rows = rows if selection is None else selection.epoch_rows
    steps = -(-rows // batch) if wrap else rows // batch
    if steps:
        return steps
    if selection is None or not selection.place:
        raise CorpusError(
            f"the corpus has {rows} utterances and training.batch is {batch}: an epoch would be empty; "
            "lower training.batch or prepare a larger corpus"
        )
    raise CorpusError(
        f"{selection.describe()} and a batch of them is {batch}: an epoch would be empty; "
        "lower the batch or choose a larger split"
    )


def cycle_position(step: int, steps_per_epoch: int) -> Cursor:
    """Where a stream that starts over after ``steps_per_epoch`` batches is at the global ``step``, from 0."""
    return Cursor(*divmod(step, steps_per_epoch))


def plan(
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    epochs: int,
    start: Cursor,
    unit_rows: int = 1024,
    fills: Collection[int] = (),
    selection: Selection | None = None,
    wrap: bool = False,
) -> Iterator[ReadUnit]:
    """The units from ``start`` to the end of the last epoch, in training order.

    Before an epoch of ``fills``, unless ``start`` is inside it, come units that hold every row (once, if class-aware),
    and so many of the first ones again that the last batch is whole. A unit ends with the batch in which a shard ends,
    once it holds ``unit_rows`` rows: reading it touches its own shards and the first rows of the next one, which
    complete its last batch.
    """
    units = partial(_units, manifest, seed=seed, batch=batch, unit_rows=unit_rows)
    steps = steps_per_epoch(manifest.rows, batch, selection, wrap=wrap)
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        if epoch in fills and first == 0:
            every = None if selection is None else selection.each_once()
            last = steps_per_epoch(manifest.rows, batch, every, wrap=True)
            yield from units(epoch, 0, last, selection=every, fill=True)
        yield from units(epoch, first, steps, selection=selection)


def plan_steps(
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    start_step: int,
    steps: int,
    unit_rows: int = 1024,
    selection: Selection | None = None,
    wrap: bool = False,
) -> Iterator[ReadUnit]:
    """The units of ``steps`` batches from the global ``start_step`` of a stream that cycles.

    Their ``epoch`` and ``first_step`` are the stream's own, as `cycle_position` has them. They end where an epoch of
    the stream ends, and with the last step.
    """
    each = steps_per_epoch(manifest.rows, batch, selection, wrap=wrap)
    at, end = start_step, start_step + steps
    while at < end:
        cursor = cycle_position(at, each)
        last = min(each, cursor.step + end - at)
        yield from _units(
            manifest, cursor.epoch, cursor.step, last, seed=seed, batch=batch, unit_rows=unit_rows, selection=selection
        )
        at += last - cursor.step


def _units(
    manifest: shards.Manifest,
    epoch: int,
    first: int,
    last: int,
    *,
    seed: int,
    batch: int,
    unit_rows: int,
    selection: Selection | None,
    fill: bool = False,
) -> Iterator[ReadUnit]:
    """Steps ``[first, last)`` of one epoch; its order is repeated where it ends before."""
    purpose = selection.purpose if selection is not None else ()
    drawn = np.random.default_rng([seed, _ORDER, epoch, *purpose]).permutation(len(manifest.shards))
    sizes = [shard.rows for shard in manifest.shards] if selection is None else selection.epoch_counts(seed, epoch)
    order = [int(k) for k in drawn if sizes[k]]
    ends = list(accumulate(sizes[k] for k in order))
    ends = [lap * ends[-1] + end for lap in range(-(-last * batch // ends[-1])) for end in ends]
    for begin, end in _cut(ends, last, first, batch, unit_rows):
        yield ReadUnit(epoch, begin, end - begin, _pieces(order, ends, begin * batch, end * batch), fill)


def _cut(ends: list[int], steps: int, first: int, batch: int, unit_rows: int) -> Iterator[tuple[int, int]]:
    """Steps ``[begin, end)`` of each unit; ``ends``: how many rows there are up to the end of each shard in order."""
    for shard_end in ends:
        last = min(-(-shard_end // batch), steps)
        enough = (last - first) * batch >= unit_rows or last == steps
        if last > first and enough:
            yield first, last
            first = last


def _pieces(order: list[int], ends: list[int], start: int, stop: int) -> tuple[ShardRange, ...]:
    """Rows ``[start, stop)`` of the shards of ``order``, one after the other, lap by lap; see `_cut` for ``ends``."""
    pieces = []
    for place in range(bisect_right(ends, start), len(ends)):
        begin = ends[place - 1] if place else 0
        if begin >= stop:
            break
        lap, shard = divmod(place, len(order))
        pieces.append(ShardRange(order[shard], max(start, begin) - begin, min(stop, ends[place]) - begin, lap))
    return tuple(pieces)

"""Which utterances form which batch: the order of every epoch, cut into units that a task can read independently.

The order of an epoch depends only on (seed, epoch) and the manifest: the shards are in a random order, and so are the
rows of each shard. Global batch `t` of an epoch is rows ``[t*G, (t+1)*G)`` of that order, and rank `r` of `W` takes the
`r`-th ``G/W`` of them. So one rank and W ranks with the same global batch `G` see the same batches, and a position in
an epoch is a single number that stays valid after any restart. The last ``N mod G`` rows of the order are left out; in
every epoch these are other rows.

With a `Selection` the same holds for its rows: shards without selected rows are skipped, and in the others only the
selected rows are permuted. A labelled and an unlabelled stream are two plans, each with its own batch size and cursor.
The shorter one cycles (`cycle_position`, `plan_steps`).

With ``wrap`` an epoch has ``ceil(N/G)`` batches: all rows of the order, and then its first rows again, until the last
batch is full, even if N < G. With class-aware sampling, N differs from epoch to epoch, but every epoch has the same
number of batches: the expected N divided by G, rounded down or (``wrap``) up. Rows after the last batch are left out.
Missing rows are, with or without ``wrap``, the first rows of the order.

This file must not import torch or ray. Its functions run in data tasks, and these imports would take most of the time
that a task needs to start.
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

_ORDER, ROWS = 1, 2  # purposes: no two draws share a key. `rayssl.views.reading` uses 3, `selection` uses 4
TURN_BIT = 44  # when an utterance comes again in an epoch, its key is made from id + turn * 2**44


@dataclass(frozen=True)
class Cursor:
    """The next batch to train on. ``step`` counts from 0 within the epoch; ``epoch`` counts from 0 too."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class ShardRange:
    """Rows ``[start, stop)`` of a shard in its permuted order; ``lap``: how often the epoch's order was repeated."""

    shard: int
    start: int
    stop: int
    lap: int = 0


@dataclass(frozen=True)
class ReadUnit:
    """Consecutive global batches that one task reads: ``steps`` batches from ``first_step`` of ``epoch``.

    With ``fill`` the batches are not trained on: they belong to the pass that fills the memory before the epoch.
    """

    epoch: int
    first_step: int
    steps: int
    pieces: tuple[ShardRange, ...]
    fill: bool = False


def steps_per_epoch(rows: int, batch: int, selection: Selection | None = None, *, wrap: bool = False) -> int:
    """The number of global batches in an epoch of ``rows`` rows, or of the rows of ``selection``.

    Only full batches count. With ``wrap`` the last batch counts too, because it is filled with the first rows. Raises
    `CorpusError` if there is no batch at all.
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
    """The position, at global ``step`` (from 0), of a stream that starts again after ``steps_per_epoch`` batches."""
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

    Before each epoch in ``fills`` there are units with ``fill``, unless ``start`` is in the middle of that epoch. They
    contain every row once, also with class-aware sampling, and then the first rows again until the last batch is full.

    A unit has at least ``unit_rows`` rows, except the last one. It ends with a batch in which a shard ends. So a task
    reads the shards of its unit, and only the first rows of the next shard, which complete the last batch.
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
    """The units of ``steps`` batches, from the global ``start_step``, of a stream that cycles.

    Their ``epoch`` and ``first_step`` count the passes of the stream, as in `cycle_position`. A unit ends at the latest
    where a pass ends.
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
    """The units of steps ``[first, last)`` of one epoch. If the order has too few rows, it is repeated."""
    purpose = selection.purpose if selection is not None else ()
    drawn = np.random.default_rng([seed, _ORDER, epoch, *purpose]).permutation(len(manifest.shards))
    sizes = [shard.rows for shard in manifest.shards] if selection is None else selection.epoch_counts(seed, epoch)
    order = [int(k) for k in drawn if sizes[k]]
    ends = list(accumulate(sizes[k] for k in order))
    ends = [lap * ends[-1] + end for lap in range(-(-last * batch // ends[-1])) for end in ends]
    for begin, end in _cut(ends, last, first, batch, unit_rows):
        yield ReadUnit(epoch, begin, end - begin, _pieces(order, ends, begin * batch, end * batch), fill)


def _cut(ends: list[int], steps: int, first: int, batch: int, unit_rows: int) -> Iterator[tuple[int, int]]:
    """Steps ``[begin, end)`` of each unit. ``ends``: the number of rows up to the end of each shard, in order."""
    for shard_end in ends:
        last = min(-(-shard_end // batch), steps)
        enough = (last - first) * batch >= unit_rows or last == steps
        if last > first and enough:
            yield first, last
            first = last


def _pieces(order: list[int], ends: list[int], start: int, stop: int) -> tuple[ShardRange, ...]:
    """The shard ranges of rows ``[start, stop)`` of the epoch's order, lap after lap. ``ends`` is as in `_cut`."""
    pieces = []
    for place in range(bisect_right(ends, start), len(ends)):
        begin = ends[place - 1] if place else 0
        if begin >= stop:
            break
        lap, shard = divmod(place, len(order))
        pieces.append(ShardRange(order[shard], max(start, begin) - begin, min(stop, ends[place]) - begin, lap))
    return tuple(pieces)

"""Which utterances form which batch: the order of every epoch, cut into units that a task can read independently.

`rayssl.batches.order` gives the order of an epoch: its row groups, permuted inside windows of shards. It is cut into
pools of about ``unit_rows`` consecutive utterances, and the utterances of a pool are permuted. Global batch `t` of an
epoch is rows ``[t*G, (t+1)*G)`` of the result, and rank `r` of `W` takes the `r`-th ``G/W`` of them. So utterances that
are neighbours in the corpus seldom meet in a batch, and in every epoch an utterance meets others: almost as many
different ones as in a full shuffle (`rayssl bench shuffle` counts them).

All this depends on the seed, the epoch, the manifest, G, ``unit_rows`` and ``shuffle_shards``, and on nothing else. So
one rank and W ranks with the same global batch `G` see the same batches, and a position in an epoch is a single number
that stays valid after any restart. The last ``N mod G`` rows of the order are left out; in every epoch these are other
rows.

A large batch has several pools side by side: one for each of its ``parts``, the largest power of two that leaves them
at least 256 rows. They can be read by tasks that serve different ranks (`ReadUnit.lane`).

With a `Selection` the same holds for its rows: row groups without selected rows are skipped. A labelled and an
unlabelled stream are two plans, each with its own batch size and cursor. The shorter one cycles (`cycle_position`,
`plan_steps`).

With ``wrap`` an epoch has ``ceil(N/G)`` batches: all rows of the order, and then its first rows again, until the last
batch is full, even if N < G. With class-aware sampling, N differs from epoch to epoch, but every epoch has the same
number of batches: the expected N divided by G, rounded down or (``wrap``) up. Rows after the last batch are left out.
Missing rows are, with or without ``wrap``, the first rows of the order.

This file must not import torch or ray. Its functions run in data tasks, and these imports would take most of the time
that a task needs to start.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

from rayssl.batches.order import ShardRange, epoch_order
from rayssl.batches.selection import Selection
from rayssl.data import shards
from rayssl.errors import CorpusError

ROWS = 2  # a purpose: no two draws share a key. `order` uses 1 and 5, `rayssl.views.reading` 3, `selection` 4
TURN_BIT = 44  # when an utterance comes again in an epoch, its key is made from id + turn * 2**44
UNIT_ROWS, SHUFFLE_SHARDS = 1024, 16  # the defaults of `corpus.unit_rows` and `corpus.shuffle_shards`
_PART_ROWS = 256


@dataclass(frozen=True)
class Cursor:
    """The next batch to train on. ``step`` counts from 0 within the epoch; ``epoch`` counts from 0 too."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class ReadUnit:
    """Consecutive global batches, or one lane of them, that one task reads: ``steps`` from ``first_step`` of ``epoch``.

    ``pools``: the rows of each part of the lane, before they are permuted. They belong to ``pool_steps`` batches from
    ``begin``: more than ``steps`` if the training resumes, or the stream ends, inside the pools. ``lane`` of ``lanes``:
    the task serves the ``lane``-th of as many equal groups of ranks, and of parts. With ``fill`` the batches are not
    trained on: they belong to the pass that fills the memory before the epoch.
    """

    epoch: int
    first_step: int
    steps: int
    begin: int
    pool_steps: int
    pools: tuple[tuple[ShardRange, ...], ...]
    lane: int = 0
    lanes: int = 1
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
        found = f"the corpus has {rows} utterances" if selection is None else selection.describe()
        raise CorpusError(
            f"{found} and training.batch is {batch}: an epoch would be empty; "
            "lower training.batch or prepare a larger corpus"
        )
    raise CorpusError(
        f"{selection.describe()} and a batch of them is {batch}: an epoch would be empty; "
        "lower the batch or choose a larger split"
    )


def cycle_position(step: int, steps_per_epoch: int) -> Cursor:
    """The position, at global ``step`` (from 0), of a stream that starts again after ``steps_per_epoch`` batches."""
    return Cursor(*divmod(step, steps_per_epoch))


def parts_of(batch: int) -> int:
    """The number of parts of a global batch: the largest power of two that divides it into at least 256 rows each."""
    parts = 1
    while batch % (2 * parts) == 0 and batch // (2 * parts) >= _PART_ROWS:
        parts *= 2
    return parts


def unit_steps(batch: int, unit_rows: int) -> int:
    """The number of batches in a unit: a part of each batch gives a pool of about ``unit_rows`` rows."""
    return max(1, unit_rows // (batch // parts_of(batch)))


def plan(
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    epochs: int,
    start: Cursor,
    unit_rows: int = UNIT_ROWS,
    shuffle_shards: int = SHUFFLE_SHARDS,
    ranks: int = 1,
    fills: Collection[int] = (),
    selection: Selection | None = None,
    wrap: bool = False,
) -> Iterator[ReadUnit]:
    """The units from ``start`` to the end of the last epoch, in training order.

    Before each epoch in ``fills`` there are units with ``fill``, unless ``start`` is in the middle of that epoch. They
    contain every row once, also with class-aware sampling, and then the first rows again until the last batch is full.

    The batches do not depend on ``ranks``. It only decides how many lanes the units of a large batch have.
    """
    units = partial(
        _units, manifest, seed=seed, batch=batch, unit_rows=unit_rows, shuffle_shards=shuffle_shards, ranks=ranks
    )
    steps = steps_per_epoch(manifest.rows, batch, selection, wrap=wrap)
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        if epoch in fills and first == 0:
            every = None if selection is None else selection.each_once()
            last = steps_per_epoch(manifest.rows, batch, every, wrap=True)
            yield from units(epoch, 0, last, last, selection=every, fill=True)
        yield from units(epoch, first, steps, steps, selection=selection)


def plan_steps(
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    start_step: int,
    steps: int,
    unit_rows: int = UNIT_ROWS,
    shuffle_shards: int = SHUFFLE_SHARDS,
    ranks: int = 1,
    selection: Selection | None = None,
    wrap: bool = False,
) -> Iterator[ReadUnit]:
    """The units of ``steps`` batches, from the global ``start_step``, of a stream that cycles.

    Their ``epoch`` and ``first_step`` count the passes of the stream, as in `cycle_position`. A unit ends at the latest
    where a pass ends.
    """
    units = partial(
        _units, manifest, seed=seed, batch=batch, unit_rows=unit_rows, shuffle_shards=shuffle_shards, ranks=ranks
    )
    each = steps_per_epoch(manifest.rows, batch, selection, wrap=wrap)
    at, end = start_step, start_step + steps
    while at < end:
        cursor = cycle_position(at, each)
        last = min(each, cursor.step + end - at)
        yield from units(cursor.epoch, cursor.step, last, each, selection=selection)
        at += last - cursor.step


def _units(
    manifest: shards.Manifest,
    epoch: int,
    first: int,
    last: int,
    steps: int,
    *,
    seed: int,
    batch: int,
    unit_rows: int,
    shuffle_shards: int,
    ranks: int,
    selection: Selection | None,
    fill: bool = False,
) -> Iterator[ReadUnit]:
    """The units of steps ``[first, last)`` of a pass of ``steps`` steps. If the order has too few rows, it repeats."""
    order = epoch_order(manifest, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards, selection=selection)
    parts, each = parts_of(batch), unit_steps(batch, unit_rows)
    lanes = math.gcd(parts, ranks)
    for begin in range(first - first % each, last, each):
        end = min(begin + each, steps)
        rows = (end - begin) * batch // parts
        starts = [begin * batch + part * rows for part in range(parts)]
        pools = [order.ranges(start, start + rows) for start in starts]
        at, stop = max(first, begin), min(last, end)
        for lane in range(lanes):
            own = tuple(pools[lane * parts // lanes : (lane + 1) * parts // lanes])
            yield ReadUnit(epoch, at, stop - at, begin, end - begin, own, lane, lanes, fill)

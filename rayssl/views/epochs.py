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
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from rayssl import draws
from rayssl.data import decode, shards
from rayssl.errors import CorpusError
from rayssl.views import kept
from rayssl.views.crops import cut_segments
from rayssl.views.recipes import Segment
from rayssl.views.selection import Selection

_ORDER, _ROWS, _CUT = 1, 2, 3  # purposes, so that no two draws share a key; 4 is `selection`'s
TURN_BIT = 44  # keys of an utterance's second turn in an epoch are those of id + 2**44
_LABELS = ("speaker", "recording", "label", "truth")


@dataclass(frozen=True)
class Cursor:
    """The next batch to train on: ``step`` counts from 0 inside ``epoch``, which counts from 0."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Piece:
    """Rows ``[start, stop)`` of the permuted order of one shard; ``lap`` counts how often the epoch's order wrapped."""

    shard: int
    start: int
    stop: int
    lap: int = 0


@dataclass(frozen=True)
class Unit:
    """Consecutive global batches that one task reads: ``steps`` of them from ``first_step`` of ``epoch``.

    With ``fill`` they are not trained on: they belong to the pass over the corpus that comes before the epoch.
    """

    epoch: int
    first_step: int
    steps: int
    pieces: tuple[Piece, ...]
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
) -> Iterator[Unit]:
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
) -> Iterator[Unit]:
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
) -> Iterator[Unit]:
    """Steps ``[first, last)`` of one epoch; its order is repeated where it ends before."""
    purpose = selection.purpose if selection is not None else ()
    drawn = np.random.default_rng([seed, _ORDER, epoch, *purpose]).permutation(len(manifest.shards))
    sizes = [shard.rows for shard in manifest.shards] if selection is None else selection.epoch_counts(seed, epoch)
    order = [int(k) for k in drawn if sizes[k]]
    ends = list(accumulate(sizes[k] for k in order))
    ends = [lap * ends[-1] + end for lap in range(-(-last * batch // ends[-1])) for end in ends]
    for begin, end in _cut(ends, last, first, batch, unit_rows):
        yield Unit(epoch, begin, end - begin, _pieces(order, ends, begin * batch, end * batch), fill)


def _cut(ends: list[int], steps: int, first: int, batch: int, unit_rows: int) -> Iterator[tuple[int, int]]:
    """Steps ``[begin, end)`` of each unit; ``ends``: how many rows there are up to the end of each shard in order."""
    for shard_end in ends:
        last = min(-(-shard_end // batch), steps)
        enough = (last - first) * batch >= unit_rows or last == steps
        if last > first and enough:
            yield first, last
            first = last


def read(
    unit: Unit,
    uri: str,
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    ranks: int,
    segments: Sequence[Segment],
    selection: Selection | None = None,
) -> Iterator[dict[str, Any]]:
    """The batches of ``unit``, one dictionary for each step and rank, ranks innermost.

    Keys: ``epoch``, ``step``, ``rank`` (int), ``fill`` (bool), ``id`` int64 ``[B]``, ``speaker``, ``recording``,
    ``label``, ``truth`` int32 ``[B]`` (-1 where unknown), ``turn`` int32 ``[B]`` and each segment's name with int16
    ``[B, samples]``. ``label`` may be learned from and ``truth`` may not: without a split both are the corpus's label,
    with one they are its classes (see `Selection.labels_of`). ``turn`` numbers the times that an utterance comes in an
    epoch, from 0: its segments are others each time. Raises `CorpusError` or `StorageError` naming the shard when it
    cannot be read or decoded.
    """
    size = batch // ranks
    names = [segment.name for segment in segments]
    pending: dict[str, list[Any]] = {name: [] for name in ("id", *_LABELS, "turn", *names)}
    ready = 0
    for row in _rows(unit, uri, manifest, seed, segments, selection):
        for name, value in row.items():
            pending[name].append(value)
        if len(pending["id"]) == size:
            where = {"epoch": unit.epoch, "step": unit.first_step + ready // ranks, "rank": ready % ranks}
            where["fill"] = unit.fill
            yield {**where, **{name: _column(name, values) for name, values in pending.items()}}
            pending = {name: [] for name in pending}
            ready += 1


def _pieces(order: list[int], ends: list[int], start: int, stop: int) -> tuple[Piece, ...]:
    """Rows ``[start, stop)`` of the shards of ``order``, one after the other, lap by lap; see `_cut` for ``ends``."""
    pieces = []
    for place in range(bisect_right(ends, start), len(ends)):
        begin = ends[place - 1] if place else 0
        if begin >= stop:
            break
        lap, shard = divmod(place, len(order))
        pieces.append(Piece(order[shard], max(start, begin) - begin, min(stop, ends[place]) - begin, lap))
    return tuple(pieces)


def _rows(
    unit: Unit, uri: str, manifest: shards.Manifest, seed: int, segments: Sequence[Segment], selection: Selection | None
) -> Iterator[dict[str, Any]]:
    """The rows of the unit's pieces. A shard that comes in several is read once, and only its rows are held."""
    left = Counter(piece.shard for piece in unit.pieces)
    held: dict[int, tuple[np.ndarray, pa.Table]] = {}
    purpose = selection.purpose if selection is not None else ()
    for piece in unit.pieces:
        rows, turns = _order(piece, unit, manifest, seed, selection)
        wanted = slice(piece.start, piece.stop)
        shard = manifest.shards[piece.shard]
        if piece.shard not in held:
            used = np.unique(rows if left[piece.shard] > 1 else rows[wanted])
            if selection is not None and selection.roles == "labelled":
                used = selection.rows_of(piece.shard)
                key = (uri, shard.sha256, selection.sha256)
                table = kept.LABELLED.table(key, partial(_read, uri, shard, used))
            else:
                table = _read(uri, shard, used)
            held[piece.shard] = used, table
        rows, turns = rows[wanted], turns[wanted]
        left[piece.shard] -= 1
        used, table = held[piece.shard] if left[piece.shard] else held.pop(piece.shard)
        at = np.searchsorted(used, rows)
        ids = shard.first_id + rows.astype(np.int64)
        keys = draws.keys_np(draws.fold(seed, _CUT, unit.epoch, *purpose), ids + (turns << TURN_BIT))
        labels = {name: table.column(name).to_numpy()[at] for name in ("speaker", "recording", "label")}
        labels["truth"] = labels["label"]
        if selection is not None:
            labels["label"], labels["truth"] = selection.labels_of(piece.shard, rows, labels["label"])
        names, audio = table.column("name"), table.column("audio")
        for i, utterance in enumerate(ids):
            try:
                pcm = decode.pcm(audio[at[i]].as_py(), manifest.format)
            except CorpusError as error:
                raise CorpusError(f"{uri}/{shard.path}: utterance '{names[at[i]].as_py()}': {error}") from error
            cuts = cut_segments(pcm, segments, keys[i], manifest.rate)
            known = {name: column[i] for name, column in labels.items()}
            yield {"id": utterance, **known, "turn": turns[i], **cuts}


def _read(uri: str, shard: shards.Shard, rows: np.ndarray) -> pa.Table:
    columns = ["name", "audio", "speaker", "recording", "label"]
    # copied together, so that nothing holds on to the audio of the others
    return shards.read_shard(uri, shard, columns).take(pa.array(rows)).combine_chunks()


def _order(
    piece: Piece, unit: Unit, manifest: shards.Manifest, seed: int, selection: Selection | None
) -> tuple[np.ndarray, np.ndarray]:
    """All rows of the piece's shard in the order of the unit's epoch, and which turn of its utterance each is.

    A pass that fills the memory has every row in turn 0.
    """
    rows = np.arange(manifest.shards[piece.shard].rows)
    purpose, turns = tuple[int, ...](), np.full(len(rows), piece.lap)
    if selection is not None:
        purpose, once = selection.purpose, selection.rows_of(piece.shard)
        times = (selection.each_once() if unit.fill else selection).times(piece.shard, once, seed, unit.epoch)
        rows = np.repeat(once, times)
        turns = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times) + piece.lap * np.repeat(times, times)
    order = np.random.default_rng([seed, _ROWS, unit.epoch, piece.shard, *purpose]).permutation(len(rows))
    return rows[order], np.zeros_like(turns) if unit.fill else turns[order]


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name == "id":
        return np.asarray(values, np.int64)
    return np.asarray(values, np.int32) if name in (*_LABELS, "turn") else np.stack(values)

"""Which utterances form which batch: the order of every epoch, cut into units of work that one task can read alone.

The order of an epoch is a function of (seed, epoch) and the manifest: shards in a drawn order, the rows of each shard
permuted. Global batch `t` of an epoch is rows ``[t*G, (t+1)*G)`` of that order and rank `r` of `W` takes the `r`-th
``G/W`` of them, so one rank and W ranks at the same global batch `G` see the same batches, and a position inside an
epoch is one number that means the same after any restart. The last ``N mod G`` rows of an epoch's order are left out;
they are others in every epoch.

Neither torch nor ray is imported here: these functions run inside data tasks, whose cold start they would dominate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from rayssl import draws
from rayssl.data import decode, shards
from rayssl.errors import CorpusError
from rayssl.views.crops import cut_segments
from rayssl.views.recipes import Segment

_ORDER, _ROWS, _CUT = 1, 2, 3  # purposes, so that no two draws share a key


@dataclass(frozen=True)
class Cursor:
    """The next batch to train on: ``step`` counts from 0 inside ``epoch``, which counts from 0."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Piece:
    """Rows ``[start, stop)`` of the permuted order of one shard."""

    shard: int
    start: int
    stop: int


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


def steps_per_epoch(rows: int, batch: int) -> int:
    """Whole global batches in an epoch; raises `CorpusError` when there is not even one (an empty epoch)."""
    if rows < batch:
        raise CorpusError(
            f"the corpus has {rows} utterances and training.batch is {batch}: an epoch would be empty; "
            "lower training.batch or prepare a larger corpus"
        )
    return rows // batch


def plan(
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    epochs: int,
    start: Cursor,
    unit_rows: int = 1024,
    fills: Collection[int] = (),
) -> Iterator[Unit]:
    """The units from ``start`` to the end of the last epoch, in training order.

    Before an epoch of ``fills``, unless ``start`` is inside it, come units that hold every row of the corpus, and so
    many of its first ones again that the last batch is whole. A unit ends with the batch in which a shard ends, once it
    holds ``unit_rows`` rows: reading it touches its own shards and the first rows of the next one, which complete its
    last batch.
    """
    steps = steps_per_epoch(manifest.rows, batch)
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        order = [int(k) for k in np.random.default_rng([seed, _ORDER, epoch]).permutation(len(manifest.shards))]
        ends = list(accumulate(manifest.shards[k].rows for k in order))
        if epoch in fills and first == 0:
            every, twice = -(-manifest.rows // batch), [*ends, *(manifest.rows + end for end in ends)]
            for begin, end in _cut(twice, every, 0, batch, unit_rows):
                pieces = _pieces(order + order, twice, begin * batch, end * batch)
                yield Unit(epoch, begin, end - begin, pieces, fill=True)
        for begin, end in _cut(ends, steps, first, batch, unit_rows):
            yield Unit(epoch, begin, end - begin, _pieces(order, ends, begin * batch, end * batch))


def _cut(ends: list[int], steps: int, first: int, batch: int, unit_rows: int) -> Iterator[tuple[int, int]]:
    """Steps ``[begin, end)`` of each unit; ``ends``: how many rows there are up to the end of each shard in order."""
    for shard_end in ends:
        last = min(-(-shard_end // batch), steps)
        enough = (last - first) * batch >= unit_rows or last == steps
        if last > first and enough:
            yield first, last
            first = last


def read(
    unit: Unit, uri: str, manifest: shards.Manifest, *, seed: int, batch: int, ranks: int, segments: Sequence[Segment]
) -> Iterator[dict[str, Any]]:
    """The batches of ``unit``, one dictionary for each step and rank, ranks innermost.

    Keys: ``epoch``, ``step``, ``rank`` (int), ``fill`` (bool), ``id`` int64 ``[B]``, ``speaker``, ``recording``,
    ``label`` int32 ``[B]`` (-1 where unknown) and each segment's name with int16 ``[B, samples]``. Raises `CorpusError`
    or `StorageError` naming the shard when it cannot be read or decoded.
    """
    size = batch // ranks
    names = [segment.name for segment in segments]
    pending: dict[str, list[Any]] = {name: [] for name in ("id", "speaker", "recording", "label", *names)}
    ready = 0
    for piece in unit.pieces:
        for row in _rows(piece, unit.epoch, uri, manifest, seed, segments):
            for name, value in row.items():
                pending[name].append(value)
            if len(pending["id"]) == size:
                where = {"epoch": unit.epoch, "step": unit.first_step + ready // ranks, "rank": ready % ranks}
                where["fill"] = unit.fill
                yield {**where, **{name: _column(name, values) for name, values in pending.items()}}
                pending = {name: [] for name in pending}
                ready += 1


def _pieces(order: list[int], ends: list[int], start: int, stop: int) -> tuple[Piece, ...]:
    """Rows ``[start, stop)`` of the shards of ``order``, one after the other; see `_cut` for ``ends``."""
    pieces = []
    for place in range(bisect_right(ends, start), len(order)):
        begin = ends[place - 1] if place else 0
        if begin >= stop:
            break
        pieces.append(Piece(order[place], max(start, begin) - begin, min(stop, ends[place]) - begin))
    return tuple(pieces)


def _rows(
    piece: Piece, epoch: int, uri: str, manifest: shards.Manifest, seed: int, segments: Sequence[Segment]
) -> Iterator[dict[str, Any]]:
    shard = manifest.shards[piece.shard]
    rows = np.random.default_rng([seed, _ROWS, epoch, piece.shard]).permutation(shard.rows)[piece.start : piece.stop]
    table = shards.read_shard(uri, shard, columns=["name", "audio", "speaker", "recording", "label"]).take(
        pa.array(rows)
    )
    ids = shard.first_id + rows.astype(np.int64)
    keys = draws.keys_np(draws.fold(seed, _CUT, epoch), ids)
    names, audio = table.column("name"), table.column("audio")
    labels = {name: table.column(name).to_numpy() for name in ("speaker", "recording", "label")}
    for i, utterance in enumerate(ids):
        try:
            pcm = decode.pcm(audio[i].as_py(), manifest.format)
        except CorpusError as error:
            raise CorpusError(f"{uri}/{shard.path}: utterance '{names[i].as_py()}': {error}") from error
        cuts = cut_segments(pcm, segments, keys[i], manifest.rate)
        yield {"id": utterance, **{name: column[i] for name, column in labels.items()}, **cuts}


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name == "id":
        return np.asarray(values, np.int64)
    return np.asarray(values, np.int32) if name in ("speaker", "recording", "label") else np.stack(values)

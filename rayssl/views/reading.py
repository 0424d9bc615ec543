"""The batches of a unit: reads the row groups, decodes what the segments use, and packs it for each rank.

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from rayssl.batches import cache
from rayssl.batches.plan import ROWS, TURN_BIT, ReadUnit
from rayssl.batches.selection import Selection
from rayssl.batches.sequences import Sequences
from rayssl.data import decode, row_groups, shards
from rayssl.data.row_groups import ShardRows
from rayssl.errors import CorpusError
from rayssl.random import draws
from rayssl.views import crops
from rayssl.views.packed import INTEGERS, Packed, Spans
from rayssl.views.recipes import Segment

_CUT = 3  # the purpose of the draws of crops; see `rayssl.batches.plan`
_BLOCK_BYTES = 64 << 20  # the most bytes of samples that a rank is sent at once, if a single batch is not larger
_SHARDS_AT_ONCE = 8


@dataclass(frozen=True)
class ReadSettings:
    """What reading needs to know of a stream, besides the unit: plain values, which import no torch.

    ``batch``: the global batch, of utterances or of sequences; ``ranks``: among how many it is divided.
    """

    uri: str
    manifest: shards.Manifest
    seed: int
    batch: int
    ranks: int
    selection: Selection | None = None

    @property
    def rank_rows(self) -> int:
        """The number of rows of a batch of one rank: utterances, or the epochs of its sequences."""
        length = self.selection.length if isinstance(self.selection, Sequences) else 1
        return self.batch // self.ranks * length

    def sizes(self, segments: Sequence[Segment]) -> dict[str, int]:
        """The length of each segment, by name, in samples. Of a night's epoch it is the whole epoch or picture."""
        if isinstance(self.selection, Sequences):
            return {segment.name: math.prod(self.manifest.epoch_shape) for segment in segments}
        return {segment.name: segment.samples(self.manifest.rate) for segment in segments}


def read(
    unit: ReadUnit, stream: ReadSettings, segments: Sequence[Segment], *, only: int | None = None
) -> Iterator[Packed]:
    """The batches of ``unit``, packed: a few steps for each rank of the unit's lane, then the next steps.

    Args:
        unit: one of the units of the stream's plan.
        stream: the stream.
        segments: what is cut from each utterance.
        only: the one rank whose batches are wanted; None for all.

    Yields:
        `Packed`. Its `Packed.batches` are dictionaries with the keys

        - ``epoch``, ``step``, ``rank`` (int) and ``fill`` (bool);
        - ``id`` int64 ``[B]``; ``speaker``, ``recording``, ``label`` and ``truth`` int32 ``[B]``, -1 if unknown;
        - ``turn`` int32 ``[B]``: how often the utterance came before in this epoch. Its segments differ each time;
        - the name of each segment, with int16 ``[B, samples]``.

        If the stream gives sequences, B counts epochs of sleep: those of one sequence after the other. A segment is a
        whole epoch: its samples, or the bytes of its float16 picture.

        A method may learn from ``label`` but not from ``truth``. Without a split both are the label of the corpus. With
        a split both are its classes, see `Selection.labels_of`.

    Raises:
        CorpusError, StorageError: a shard cannot be read or decoded. The message names it.
    """
    served = stream.ranks // unit.lanes
    if only is not None and only // served != unit.lane:
        return
    rows = rows_of(unit, stream)
    held = _fetched(unit, stream, rows)
    columns, samples, audio = _columns(unit, stream, rows, held)
    verified = all(found.verified for found in held.values())
    purpose = stream.selection.purpose if stream.selection is not None else ()
    seed = draws.fold(stream.seed, _CUT, unit.epoch, *purpose)
    keys = draws.keys_np(seed, columns["id"] + (columns["turn"].astype(np.int64) << TURN_BIT))
    sizes = stream.sizes(segments)
    if isinstance(stream.selection, Sequences):
        starts = np.zeros((len(samples), len(segments)), np.int64)
    else:
        starts = crops.starts(samples, segments, keys, stream.manifest.rate)
    size = stream.rank_rows
    step = block_steps(unit, stream, segments)
    for begin in range(0, unit.steps, step):
        steps = range(begin, min(begin + step, unit.steps))
        for place in range(served):
            rank = unit.lane * served + place
            if only is not None and rank != only:
                continue
            first = [(k * served + place) * size for k in steps]
            at = np.concatenate([np.arange(k, k + size) for k in first])
            spans = Spans.of(starts[at], list(sizes.values()), samples[at])
            pcm = _decoded(stream, rows, audio, samples, at, spans, verified)
            own = {name: column[at] for name, column in columns.items()}
            where = (unit.epoch, unit.first_step + begin, len(steps), rank, unit.fill)
            ends = np.cumsum(spans.lengths)
            yield Packed(*where, own, pcm, ends, sizes, spans.starts.astype(np.int32))


def block_steps(unit: ReadUnit, stream: ReadSettings, segments: Sequence[Segment]) -> int:
    """The number of steps that a rank is sent at once; all of the unit's if several tasks serve the ranks of a step."""
    if unit.lanes > 1:
        return unit.steps
    size = stream.rank_rows * utterance_bytes(stream.manifest, segments)
    return min(unit.steps, max(1, int(_BLOCK_BYTES // size)))


def utterance_bytes(manifest: shards.Manifest, segments: Sequence[Segment]) -> float:
    """About how many bytes of samples an utterance of average length ships: at most the whole utterance."""
    if manifest.nights is not None:
        return 2.0 * math.prod(manifest.epoch_shape)
    seconds = min(manifest.seconds / manifest.rows, sum(segment.seconds for segment in segments))
    return max(1.0, 2 * manifest.rate * seconds)


@dataclass(frozen=True)
class UnitRows:
    """The utterances of a unit in the order of its batches: shard, row in it, and turn in the epoch; ``[n]`` each."""

    shard: np.ndarray
    row: np.ndarray
    turn: np.ndarray


def rows_of(unit: ReadUnit, stream: ReadSettings) -> UnitRows:
    """The utterances of the unit's steps: the rows of each pool are permuted. In a pass that fills every turn is 0.

    Of a stream of sequences it gives the epochs of one sequence after the other.
    """
    selection = stream.selection
    if selection is not None and unit.fill:
        selection = selection.each_once()
    purpose = selection.purpose if selection is not None else ()
    parts = []
    known: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for number, pool in enumerate(unit.pools, unit.lane * len(unit.pools)):
        found = []
        for piece in pool:
            if selection is None:
                row = np.arange(piece.start, piece.stop)
                turn = np.full(len(row), piece.lap)
            else:
                if piece.shard not in known:
                    known[piece.shard] = selection.entries(piece.shard, stream.seed, unit.epoch)
                row, turn, times = (column[piece.start : piece.stop] for column in known[piece.shard])
                turn = turn + piece.lap * times
            found.append(np.stack([np.full(len(row), piece.shard), row, np.zeros_like(turn) if unit.fill else turn]))
        rows = np.concatenate(found, axis=1)
        order = np.random.default_rng([stream.seed, ROWS, unit.epoch, unit.begin, number, *purpose])
        parts.append(rows[:, order.permutation(rows.shape[1])].reshape(3, unit.pool_steps, -1))
    skip = unit.first_step - unit.begin
    together = np.concatenate(parts, axis=2)[:, skip : skip + unit.steps].reshape(3, -1)
    if isinstance(selection, Sequences):
        inside = selection.expanded(together[0], together[1])
        shard, turn = (np.repeat(column, selection.length) for column in together[::2])
        return UnitRows(shard, inside.reshape(-1), turn)
    return UnitRows(*together)


def _fetched(unit: ReadUnit, stream: ReadSettings, rows: UnitRows) -> dict[int, ShardRows]:
    """The encoded rows of each shard that the unit needs, read in parallel."""
    needed = np.unique(rows.shard).tolist()
    read = partial(_shard_rows, stream, rows)
    with ThreadPoolExecutor(min(_SHARDS_AT_ONCE, len(needed))) as pool:
        return dict(zip(needed, pool.map(read, needed), strict=True))


def _shard_rows(stream: ReadSettings, rows: UnitRows, number: int) -> ShardRows:
    shard, selection, size = stream.manifest.shards[number], stream.selection, stream.manifest.group_rows
    # a unit has a few labelled clips of each shard; of nights a shard's labelled rows are all, too many to hold
    if selection is None or selection.roles != "labelled" or isinstance(selection, Sequences):
        return row_groups.read_rows(stream.uri, shard, np.unique(rows.row[rows.shard == number]), size)
    key = (stream.uri, shard.sha256, selection.sha256)
    every = selection.rows_of(number)
    return cache.LABELLED.rows(key, lambda: row_groups.read_rows(stream.uri, shard, every, size).detached())


def _columns(
    unit: ReadUnit, stream: ReadSettings, rows: UnitRows, held: dict[int, ShardRows]
) -> tuple[dict[str, np.ndarray], np.ndarray, list[memoryview]]:
    """The columns of all rows by name, their lengths in samples, and their encoded audio."""
    count = len(rows.row)
    columns: dict[str, np.ndarray] = {
        "id": np.empty(count, np.int64),
        **{name: np.empty(count, np.int32) for name in INTEGERS},
    }
    columns["turn"][:] = rows.turn
    samples = np.empty(count, np.int64)
    audio: list[memoryview] = [memoryview(b"")] * count
    for number, found in held.items():
        inside = np.flatnonzero(rows.shard == number)
        row = rows.row[inside]
        at = np.searchsorted(found.rows, row)
        columns["id"][inside] = stream.manifest.shards[number].first_id + row
        for name, column in found.columns.items():
            columns[name][inside] = column[at]
        label = truth = found.columns["label"][at]
        if stream.selection is not None:
            label, truth = stream.selection.labels_of(number, row, label)
        columns["label"][inside], columns["truth"][inside] = label, truth
        samples[inside] = found.samples[at]
        for k, place in zip(inside.tolist(), at.tolist(), strict=True):
            audio[k] = found.audio[place]
    return columns, samples, audio


def _decoded(
    stream: ReadSettings,
    rows: UnitRows,
    audio: Sequence[memoryview],
    samples: np.ndarray,
    at: np.ndarray,
    spans: Spans,
    verified: bool,
) -> np.ndarray:
    """The shipped samples of the rows ``at``, one utterance after the other."""
    pcm = np.empty(int(spans.lengths.sum()), np.int16)
    stops = np.cumsum(spans.lengths).tolist()
    for k, parts, stop, length in zip(at.tolist(), spans.parts, stops, spans.lengths.tolist(), strict=True):
        try:
            out = pcm[stop - length : stop]
            decode.pcm_parts(audio[k], stream.manifest.format, int(samples[k]), parts, out, verified=verified)
        except CorpusError as error:
            shard = stream.manifest.shards[int(rows.shard[k])]
            name = shards.read_shard(stream.uri, shard, ["name"])["name"][int(rows.row[k])].as_py()
            raise CorpusError(f"{stream.uri}/{shard.path}: utterance '{name}': {error}") from error
    return pcm

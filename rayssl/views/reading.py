"""The batches of a unit: reads its shards, decodes the audio, and cuts the segments of the method.

This file must not import torch or ray, see `rayssl.batches.plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayssl.batches import cache
from rayssl.batches.plan import ROWS, TURN_BIT, ReadUnit, ShardRange
from rayssl.batches.selection import Selection
from rayssl.data import decode, shards
from rayssl.errors import CorpusError
from rayssl.random import draws
from rayssl.views.crops import cut_segments
from rayssl.views.recipes import Segment

_CUT = 3  # the purpose of the draws of crops; see `rayssl.batches.plan`
_LABELS = ("speaker", "recording", "label", "truth")


def read(
    unit: ReadUnit,
    uri: str,
    manifest: shards.Manifest,
    *,
    seed: int,
    batch: int,
    ranks: int,
    segments: Sequence[Segment],
    selection: Selection | None = None,
) -> Iterator[dict[str, Any]]:
    """The batches of ``unit``: one dictionary for each step and rank, first all ranks of a step, then the next step.

    A dictionary has the keys

    - ``epoch``, ``step``, ``rank`` (int) and ``fill`` (bool);
    - ``id`` int64 ``[B]``; ``speaker``, ``recording``, ``label`` and ``truth`` int32 ``[B]``, -1 if unknown;
    - ``turn`` int32 ``[B]``: how often the utterance came before in this epoch. Its segments differ each time;
    - the name of each segment, with int16 ``[B, samples]``.

    A method may learn from ``label`` but not from ``truth``. Without a split both are the label of the corpus. With a
    split both are its classes, see `Selection.labels_of`. Raises `CorpusError` or `StorageError`, which name the shard,
    if a shard cannot be read or decoded.
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


def _rows(
    unit: ReadUnit,
    uri: str,
    manifest: shards.Manifest,
    seed: int,
    segments: Sequence[Segment],
    selection: Selection | None,
) -> Iterator[dict[str, Any]]:
    """The rows of the unit's pieces. A shard that has several pieces is read once. Only the rows it needs are kept."""
    left = Counter(piece.shard for piece in unit.pieces)
    held: dict[int, tuple[np.ndarray, pa.Table]] = {}
    purpose = selection.purpose if selection is not None else ()
    for piece in unit.pieces:
        rows, turns = _order(piece, unit, manifest, seed, selection)
        own = slice(piece.start, piece.stop)
        shard = manifest.shards[piece.shard]
        if piece.shard not in held:
            used = np.unique(rows if left[piece.shard] > 1 else rows[own])
            if selection is not None and selection.roles == "labelled":
                used = selection.rows_of(piece.shard)
                key = (uri, shard.sha256, selection.sha256)
                table = cache.LABELLED.table(key, partial(_read, uri, shard, used))
            else:
                table = _read(uri, shard, used)
            held[piece.shard] = used, table
        rows, turns = rows[own], turns[own]
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
    # a copy of these rows, so that the memory of the other rows' audio is freed
    return shards.read_shard(uri, shard, columns).take(pa.array(rows)).combine_chunks()


def _order(
    piece: ShardRange, unit: ReadUnit, manifest: shards.Manifest, seed: int, selection: Selection | None
) -> tuple[np.ndarray, np.ndarray]:
    """All rows of the piece's shard in the order of the epoch, and the turn of each row (see `read`).

    In a pass that fills the memory every turn is 0.
    """
    rows = np.arange(manifest.shards[piece.shard].rows)
    purpose, turns = tuple[int, ...](), np.full(len(rows), piece.lap)
    if selection is not None:
        purpose, once = selection.purpose, selection.rows_of(piece.shard)
        times = (selection.each_once() if unit.fill else selection).times(piece.shard, once, seed, unit.epoch)
        rows = np.repeat(once, times)
        turns = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times) + piece.lap * np.repeat(times, times)
    order = np.random.default_rng([seed, ROWS, unit.epoch, piece.shard, *purpose]).permutation(len(rows))
    return rows[order], np.zeros_like(turns) if unit.fill else turns[order]


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name == "id":
        return np.asarray(values, np.int64)
    return np.asarray(values, np.int32) if name in (*_LABELS, "turn") else np.stack(values)

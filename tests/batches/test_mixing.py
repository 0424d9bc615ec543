"""Neighbours are mixed: no batch is of one shard, an utterance meets others every epoch; what it costs is bounded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rayssl.batches.order import epoch_order
from rayssl.batches.plan import Cursor, plan
from rayssl.data.shards import Manifest
from rayssl.views import reading
from rayssl.views.reading import ReadSettings
from tests.batches.test_plan import manifest_of

SHARDS, ROWS, BATCH, GROUP = 16, 64, 32, 8
# speakers follow each other in the corpus, 16 utterances each: a quarter of a shard
SPEAKER = np.arange(SHARDS * ROWS) // 16


def manifest(shards: int = SHARDS, group_rows: int = GROUP) -> Manifest:
    return manifest_of(*[ROWS] * shards).model_copy(update={"group_rows": group_rows})


def epoch_of(corpus: Manifest, epoch: int, **knobs: Any) -> np.ndarray:
    """The ids of an epoch's batches, ``[steps, BATCH]``, from the plan alone."""
    settings, found = ReadSettings("", corpus, 3, BATCH, 1), []
    more = {"unit_rows": 256, "shuffle_shards": 16, **knobs}
    for unit in plan(corpus, seed=3, batch=BATCH, epochs=epoch + 1, start=Cursor(epoch), **more):
        rows = reading.rows_of(unit, settings)
        found.append((rows.shard * ROWS + rows.row).reshape(-1, BATCH))
    return np.concatenate(found)


def largest(batches: np.ndarray, group: np.ndarray) -> int:
    """The most rows of a batch that are of one group; ``group [n]`` is that of each utterance."""
    return max(int(np.bincount(group[batch]).max()) for batch in batches)


def mates(epochs: list[np.ndarray]) -> float:
    """With how many different others an utterance was in a batch, on average."""
    met = np.zeros((SHARDS * ROWS,) * 2, bool)
    for batches in epochs:
        for batch in batches:
            met[np.ix_(batch, batch)] = True
    return float(met.sum(axis=1).mean() - 1)


def test_no_batch_is_dominated_by_a_shard_or_a_speaker() -> None:
    shard = np.arange(SHARDS * ROWS) // ROWS
    epochs = [epoch_of(manifest(), epoch) for epoch in range(10)]
    assert all(sorted(batches.ravel().tolist()) == list(range(SHARDS * ROWS)) for batches in epochs)
    full = np.random.default_rng(1)
    random = [full.permutation(SHARDS * ROWS).reshape(-1, BATCH) for _ in range(10)]
    for group, others in ((shard, 10), (SPEAKER, 9)):
        worst = [max(largest(batches, group) for batches in each) for each in (epochs, random)]
        assert worst[0] <= min(worst[1] + 5, 14) and worst[1] <= others


def test_it_would_be_seen() -> None:
    """One shard at a time in small units, as an order of whole shards has it: batches of a single shard."""
    shard = np.arange(SHARDS * ROWS) // ROWS
    batches = epoch_of(manifest(group_rows=0), 0, shuffle_shards=1, unit_rows=BATCH)
    assert largest(batches, shard) == BATCH and largest(batches, SPEAKER) == 16
    again = [epoch_of(manifest(group_rows=0), epoch, shuffle_shards=1, unit_rows=BATCH) for epoch in range(10)]
    assert mates(again) < ROWS  # it met its own shard and nobody else


@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_an_utterance_meets_almost_as_many_as_in_a_full_shuffle(epochs: int) -> None:
    full = np.random.default_rng(1)
    random = [full.permutation(SHARDS * ROWS).reshape(-1, BATCH) for _ in range(epochs)]
    assert mates([epoch_of(manifest(), epoch) for epoch in range(epochs)]) >= 0.9 * mates(random)


@pytest.mark.parametrize(("window", "unit_rows", "group_rows"), [(1, 64, 8), (2, 256, 8), (4, 64, 16), (4, 200, 0)])
def test_a_unit_touches_few_shards(window: int, unit_rows: int, group_rows: int) -> None:
    """What a task reads is bounded, whatever the corpus: the shards of as many windows as its rows reach into."""
    corpus = manifest(40, group_rows)
    group = group_rows or ROWS
    for epoch in range(2):
        units = list(
            plan(
                corpus,
                seed=3,
                batch=BATCH,
                epochs=epoch + 1,
                start=Cursor(epoch),
                unit_rows=unit_rows,
                shuffle_shards=window,
            )
        )
        place = {int(k): i for i, k in enumerate(np.random.default_rng([3, 1, epoch]).permutation(40))}
        assert 40 % window == 0
        parts: dict[tuple[int, int], int] = {}
        for unit in units:
            (pool,) = unit.pools
            rows = unit.pool_steps * BATCH
            assert rows <= max(unit_rows, BATCH)
            shards = {piece.shard for piece in pool}
            windows = {place[shard] // window for shard in shards}
            assert len(windows) <= math.ceil(rows / (window * ROWS)) + 1
            assert len(shards) <= window * len(windows) and len(pool) <= math.ceil(rows / group) + 1
            assert windows == set(range(min(windows), max(windows) + 1))
            for piece in pool:
                key = (piece.shard, piece.start // group)
                assert (piece.stop - 1) // group == key[1]  # a piece is a group, or a part of one
                parts[key] = parts.get(key, 0) + 1
        assert len(parts) == 40 * -(-ROWS // group)
        assert sum(n - 1 for n in parts.values()) < len(units)  # a group is read twice only where a unit ends inside


@pytest.mark.parametrize(("shards", "window", "least"), [(17, 16, 8), (33, 16, 11), (40, 16, 13), (16, 16, 16)])
def test_windows_are_equal(shards: int, window: int, least: int) -> None:
    """17 shards are windows of 8 and 9, not of 16 and 1: the last one would be batches of one shard."""
    order = epoch_order(manifest(shards), seed=3, epoch=0, shuffle_shards=window)
    place = {int(k): i for i, k in enumerate(np.random.default_rng([3, 1, 0]).permutation(shards))}
    groups, at, sizes = np.array([place[int(k)] for k in order.shard]), 0, []
    while at < shards:
        size = next(n for n in range(1, shards + 1) if set(groups[at * 8 : (at + n) * 8]) == set(range(at, at + n)))
        sizes.append(size)
        at += size
    assert min(sizes) >= least and max(sizes) <= min(window, least + 1)
    batches = epoch_of(manifest(shards), 0, shuffle_shards=window)
    assert largest(batches, np.arange(shards * ROWS) // ROWS) <= BATCH // 2


def test_the_rows_that_are_left_out_are_others_every_epoch() -> None:
    """17 of 1041: in no two epochs the same ones, and after some epochs all shards had some."""
    corpus = manifest_of(*[ROWS] * SHARDS, 17).model_copy(update={"group_rows": GROUP})
    left = []
    for epoch in range(8):
        batches = epoch_of(corpus, epoch)
        ids = set(batches.ravel().tolist())
        assert len(ids) == batches.size == SHARDS * ROWS
        left.append(frozenset(range(corpus.rows)) - ids)
    assert all(len(out) == 17 for out in left) and len(set(left)) == 8
    assert len({name // ROWS for out in left for name in out}) > SHARDS // 2

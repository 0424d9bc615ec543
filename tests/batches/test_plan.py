"""The order of an epoch: every batch once, the same after any restart, on any ranks, in blocks of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.batches.plan import Cursor, ReadUnit, parts_of, plan, steps_per_epoch, unit_steps
from rayssl.data.shards import Manifest, Shard
from rayssl.errors import CorpusError
from rayssl.views import reading
from rayssl.views.reading import ReadSettings
from rayssl.views.recipes import Segment
from tests.runs import write_corpus

SIZES = (9, 14, 4, 7)  # 34 utterances: four batches of 8 an epoch, two left out
START = Cursor()
SEGMENTS = (Segment(name="anchor", seconds=0.2, recipe="distort"), Segment(name="long", seconds=0.4))


def manifest_of(*sizes: int) -> Manifest:
    """A manifest without files, for plans."""
    first, parts = 0, []
    for k, rows in enumerate(sizes):
        parts.append(Shard(path=f"shards/{k:05d}.parquet", rows=rows, first_id=first, seconds=1, bytes=1, sha256=""))
        first += rows
    counts = {"speakers": 0, "recordings": 0, "labels": 0, "rejected": 0}
    return Manifest(
        version=1, format="flac", rows=first, seconds=1, shards=parts, settings={}, fingerprint="", **counts
    )


def units_of(manifest: Manifest, start: Cursor = START, **changes: Any) -> list[ReadUnit]:
    knobs: dict[str, Any] = {"seed": 3, "batch": 8, "epochs": 3, "unit_rows": 10, **changes}
    return list(plan(manifest, start=start, **knobs))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    folder = tmp_path_factory.mktemp("corpus")
    return str(folder), write_corpus(folder, SIZES)


def stream(
    corpus: tuple[str, Manifest],
    start: Cursor = START,
    *,
    ranks: int = 1,
    **changes: Any,
) -> list[dict[str, Any]]:
    uri, manifest = corpus
    settings = ReadSettings(uri, manifest, changes.get("seed", 3), 8, ranks)
    units = units_of(manifest, start, ranks=ranks, **changes)
    return [row for unit in units for packed in reading.read(unit, settings, SEGMENTS) for row in packed.batches()]


def assert_equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("sizes", [SIZES, (34,), (1,) * 34, (3, 40, 1, 1, 8)])
@pytest.mark.parametrize("unit_rows", [1, 10, 16, 1000])
def test_plan_covers_every_batch_once_in_order(sizes: tuple[int, ...], unit_rows: int) -> None:
    manifest = manifest_of(*sizes)
    steps = steps_per_epoch(manifest.rows, 8)
    everything = [(epoch, step) for epoch in range(3) for step in range(steps)]
    for at, (epoch, step) in enumerate(everything):
        units = units_of(manifest, Cursor(epoch, step), unit_rows=unit_rows)
        planned = [(unit.epoch, unit.first_step + k) for unit in units for k in range(unit.steps)]
        assert planned == everything[at:]
        for unit in units:
            (pool,) = unit.pools
            assert sum(piece.stop - piece.start for piece in pool) == unit.pool_steps * 8
            assert unit.begin <= unit.first_step and unit.first_step + unit.steps <= unit.begin + unit.pool_steps
            assert unit.pool_steps <= max(1, unit_rows // 8)
            assert all(0 <= p.start < p.stop <= sizes[p.shard] for p in pool)
    assert units_of(manifest, Cursor(3, 0)) == []


@pytest.mark.parametrize("sizes", [SIZES, (40,), (1,) * 34, (3, 40, 1, 1, 8)])
def test_a_pass_that_fills_a_memory_has_every_row(sizes: tuple[int, ...]) -> None:
    """Before its epoch and not for one that has begun; only the rows that make its last batch whole come twice."""
    manifest = manifest_of(*sizes)
    kept: dict[str, Any] = {"seed": 5, "batch": 8, "epochs": 3, "unit_rows": 10}
    plain = list(plan(manifest, start=Cursor(), **kept))
    units = list(plan(manifest, start=Cursor(), fills=[1], **kept))
    fill = [unit for unit in units if unit.fill]
    assert [unit for unit in units if not unit.fill] == plain
    assert units.index(fill[0]) == sum(unit.epoch == 0 for unit in plain) and {unit.epoch for unit in fill} == {1}
    assert [unit.first_step for unit in fill] == [sum(u.steps for u in fill[:k]) for k in range(len(fill))]
    rows = [(p.shard, row) for unit in fill for pool in unit.pools for p in pool for row in range(p.start, p.stop)]
    assert len(rows) == 8 * -(-manifest.rows // 8) == 8 * sum(unit.steps for unit in fill)
    assert len(set(rows[: manifest.rows])) == manifest.rows
    assert rows[manifest.rows :] == rows[: len(rows) - manifest.rows]
    assert list(plan(manifest, start=Cursor(1, 0), fills=[1], **kept)) == units[units.index(fill[0]) :]
    assert not any(unit.fill for unit in plan(manifest, start=Cursor(1, 1), fills=[1], **kept))


@pytest.mark.parametrize(
    ("batch", "parts"), [(8, 1), (511, 1), (512, 2), (1000, 2), (1024, 4), (1536, 4), (4096, 16), (513, 1)]
)
def test_a_large_batch_has_parts(batch: int, parts: int) -> None:
    """A power of two that divides it, with at least 256 rows in each; units are as long as one part needs."""
    assert parts_of(batch) == parts
    assert unit_steps(batch, 1024) == max(1, 1024 // (batch // parts))


def test_lanes_serve_ranks_of_their_own() -> None:
    """Each lane has its own parts of the batch; together they are what one rank reads."""
    manifest = manifest_of(*[700] * 6)
    whole = units_of(manifest, batch=1024, unit_rows=512)
    for ranks, lanes in ((1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 4)):
        units = units_of(manifest, batch=1024, unit_rows=512, ranks=ranks)
        assert len(units) == lanes * len(whole) and {unit.lanes for unit in units} == {lanes}
        for k, expected in enumerate(whole):
            own = units[lanes * k : lanes * (k + 1)]
            assert [unit.lane for unit in own] == list(range(lanes))
            assert tuple(pool for unit in own for pool in unit.pools) == expected.pools
            assert {replace(unit, lane=0, lanes=1, pools=expected.pools) for unit in own} == {expected}


@pytest.mark.parametrize("at", [0, 5, 11])
def test_resumed_stream_is_the_rest_of_the_uninterrupted_one(corpus: tuple[str, Manifest], at: int) -> None:
    whole = stream(corpus)
    assert len(whole) == 12
    start = Cursor(*divmod(at, 4))
    assert_equal(stream(corpus, start), whole[at:])


@pytest.mark.parametrize(("ranks", "most"), [(1, 1), (2, 100_000), (2, 1 << 30)])
def test_size_of_blocks_changes_nothing(
    corpus: tuple[str, Manifest], monkeypatch: pytest.MonkeyPatch, ranks: int, most: int
) -> None:
    """A rank is sent at least one batch at once, and at most those of a unit."""
    whole = {(row["epoch"], row["step"], row["rank"]): row for row in stream(corpus, ranks=ranks, unit_rows=32)}
    uri, manifest = corpus
    monkeypatch.setattr(reading, "_BLOCK_BYTES", most)
    settings = ReadSettings(uri, manifest, 3, 8, ranks)
    for unit in units_of(manifest, unit_rows=32):
        blocks = list(reading.read(unit, settings, SEGMENTS))
        each = reading.block_steps(unit, settings, SEGMENTS)
        assert each == {1: 1, 100_000: 2, 1 << 30: 4}[most] and len(blocks) == ranks * 4 // each
        assert [block.rank for block in blocks] == list(range(ranks)) * (4 // each)
        found = [row for block in blocks for row in block.batches()]
        assert_equal(found, [whole[row["epoch"], row["step"], row["rank"]] for row in found])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batches_of_one(corpus: tuple[str, Manifest], ranks: int) -> None:
    whole, shared = stream(corpus), stream(corpus, ranks=ranks)
    assert [row["rank"] for row in shared] == list(range(ranks)) * 12
    for k, expected in enumerate(whole):
        parts = shared[ranks * k : ranks * (k + 1)]
        for name, value in expected.items():
            if name in ("epoch", "step", "fill"):
                assert {part[name] for part in parts} == {value}
            elif name != "rank":
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value, err_msg=name)


def test_an_epoch_has_every_utterance_at_most_once(corpus: tuple[str, Manifest]) -> None:
    rows = stream(corpus, epochs=6)
    left_out = []
    for epoch in range(6):
        ids = np.concatenate([row["id"] for row in rows if row["epoch"] == epoch])
        assert len(ids) == 32 == len(set(ids.tolist())) and set(ids.tolist()) <= set(range(34))
        left_out.append(tuple(sorted(set(range(34)) - set(ids.tolist()))))
    assert len(set(left_out)) > 1  # others in every epoch


def test_order_and_cuts_follow_seed_and_epoch(corpus: tuple[str, Manifest]) -> None:
    first, other = stream(corpus), stream(corpus, seed=4)
    assert_equal(first, stream(corpus))
    orders = [np.concatenate([row["id"] for row in rows]) for rows in (first[:4], first[4:8], other[:4])]
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    cuts = [dict(zip(row["id"].tolist(), row["anchor"], strict=True)) for row in first]
    epoch_0, epoch_1 = ({k: v for part in cuts[a : a + 4] for k, v in part.items()} for a in (0, 4))
    both = epoch_0.keys() & epoch_1.keys()
    assert sum(not np.array_equal(epoch_0[k], epoch_1[k]) for k in both) > len(both) * 0.8


def test_rows_are_those_of_their_ids(corpus: tuple[str, Manifest]) -> None:
    for row in stream(corpus, epochs=1):
        assert row["id"].dtype == np.int64 and row["anchor"].dtype == np.int16
        assert row["anchor"].shape == (8, 3200) and row["long"].shape == (8, 6400)
        np.testing.assert_array_equal(row["speaker"], row["id"] % 4)
        np.testing.assert_array_equal(row["recording"], row["id"] % 8)
        assert row["speaker"].dtype == np.int32 and (row["label"] == -1).all()


def test_an_empty_epoch_is_an_error() -> None:
    assert steps_per_epoch(8, 8) == 1
    with pytest.raises(CorpusError, match=r"has 7 utterances and training\.batch is 8: .* lower training\.batch"):
        units_of(manifest_of(3, 4))


def test_corrupt_audio_names_utterance_and_shard(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, SIZES, corrupt=10)
    with pytest.raises(CorpusError) as caught:
        stream((str(tmp_path), manifest))
    text = str(caught.value)
    assert f"{tmp_path}/shards/00001.parquet: utterance 'utt010': " in text and "\n" not in text

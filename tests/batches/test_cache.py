"""A labelled stream reads each shard once in a process, as far as there is room; other streams keep nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rayssl.batches import cache, plan
from rayssl.batches.cache import ShardCache
from rayssl.batches.selection import Role, selection
from rayssl.data import shards
from rayssl.views import reading
from rayssl.views.recipes import Segment
from tests.runs import SPLITS, write_corpus


@pytest.mark.parametrize(("roles", "reads"), [("labelled", 3), ("unlabelled", 9)])
def test_a_shard_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, roles: Role, reads: int) -> None:
    """Eight labelled and seventeen unlabelled clips in three shards, three passes over them."""
    uri = str(tmp_path)
    manifest = write_corpus(tmp_path, (9, 10, 6), splits=SPLITS)
    monkeypatch.setattr(cache, "LABELLED", ShardCache())
    read, count = shards.read_shard, []
    monkeypatch.setattr(shards, "read_shard", lambda *a, **k: count.append(a) or read(*a, **k))
    chosen = selection(manifest, uri, "few", roles)
    assert all(chosen.counts)
    how = {"seed": 1, "batch": 4, "selection": chosen}
    found = []
    steps = 3 * plan.steps_per_epoch(0, 4, chosen, wrap=True)
    for unit in plan.plan_steps(manifest, start_step=0, steps=steps, wrap=True, unit_rows=100, **how):
        cut = (Segment(name="clip", seconds=0.1),)
        found += list(reading.read(unit, uri, manifest, ranks=1, segments=cut, **how))
    assert len(count) == reads and len(found) == steps
    wanted = {int(k) for shard in range(3) for k in chosen.bounds[shard] + chosen.rows_of(shard)}
    assert {int(k) for row in found for k in row["id"]} == wanted


def test_what_there_is_no_room_for_is_made_each_time() -> None:
    made: list[str] = []

    def make(name: str) -> pa.Table:
        made.append(name)
        return pa.table({"x": pa.array([0] * 10, pa.int64())})

    keeps = ShardCache(170)  # two tables of 80 bytes
    for _ in range(3):
        for name in ("a", "b", "c"):
            assert keeps.table(name, lambda name=name: make(name)).num_rows == 10
    assert made == ["a", "b", "c", "c", "c"]

"""A labelled stream reads each shard once in a process, as far as there is room; other streams keep nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.batches import cache, plan
from rayssl.batches.cache import ShardCache
from rayssl.batches.selection import Role, selection
from rayssl.data import row_groups
from rayssl.data.row_groups import ShardRows
from rayssl.views import reading
from rayssl.views.reading import ReadSettings
from rayssl.views.recipes import Segment
from tests.runs import SPLITS, write_corpus


@pytest.mark.parametrize(("roles", "reads"), [("labelled", 3), ("unlabelled", 9)])
def test_a_shard_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, roles: Role, reads: int) -> None:
    """Eight labelled and seventeen unlabelled clips in three shards, three passes over them."""
    uri = str(tmp_path)
    manifest = write_corpus(tmp_path, (9, 10, 6), splits=SPLITS)
    monkeypatch.setattr(cache, "LABELLED", ShardCache())
    read, count = row_groups.read_rows, list[Any]()
    monkeypatch.setattr(row_groups, "read_rows", lambda *a: (count.append(a), read(*a))[1])
    chosen = selection(manifest, uri, "few", roles)
    assert all(chosen.counts)
    how: dict[str, Any] = {"seed": 1, "batch": 4, "selection": chosen}
    settings, found = ReadSettings(uri, manifest, 1, 4, 1, chosen), list[dict[str, Any]]()
    steps = 3 * plan.steps_per_epoch(0, 4, chosen, wrap=True)
    for unit in plan.plan_steps(manifest, start_step=0, steps=steps, wrap=True, unit_rows=100, **how):
        for packed in reading.read(unit, settings, (Segment(name="clip", seconds=0.1),)):
            found += packed.batches()
    assert len(count) == reads and len(found) == steps
    wanted = {int(k) for shard in range(3) for k in chosen.bounds[shard] + chosen.rows_of(shard)}
    assert {int(k) for row in found for k in row["id"]} == wanted


def test_what_there_is_no_room_for_is_made_each_time() -> None:
    made: list[str] = []

    def make(name: str) -> ShardRows:
        made.append(name)
        return ShardRows(np.arange(2), [memoryview(bytes(30)), memoryview(bytes(50))], np.zeros(2), {})

    keeps = ShardCache(170)  # twice 80 bytes of audio
    for _ in range(3):
        for name in ("a", "b", "c"):
            assert len(keeps.rows(name, lambda name=name: make(name)).audio) == 2
    assert made == ["a", "b", "c", "c", "c"]


def test_kept_rows_do_not_keep_what_was_read_with_them(tmp_path: Path) -> None:
    """A view of one utterance would hold its whole row group in memory, which the cache does not count."""
    manifest = write_corpus(tmp_path, (30,))
    found = row_groups.read_rows(str(tmp_path), manifest.shards[0], np.array([3, 7]), manifest.group_rows)
    kept = found.detached()
    assert kept.nbytes == found.nbytes == sum(memoryview(audio.obj).nbytes for audio in kept.audio)
    assert sum(memoryview(audio.obj).nbytes for audio in found.audio) > 5 * kept.nbytes
    assert [bytes(audio) for audio in kept.audio] == [bytes(audio) for audio in found.audio]

"""`rayssl bench shuffle`: its counts against sets, what it counts as a training sees it, and the command."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from rayssl.bench import shuffle
from rayssl.bench.shuffle import ShuffleCase, measure, planned, table
from rayssl.cli import main
from rayssl.errors import UserError

SMALL = ShuffleCase(shards=5, shard_utterances=13, batch=8, epochs=4, shuffle_shards=2, unit_rows=16, group_rows=3)


def by_hand(job: ShuffleCase) -> tuple[float, float, float]:
    """Mates, shards in a batch and the largest shard's share, with sets."""
    mates: dict[int, set[int]] = {k: set() for k in range(job.utterances)}
    shards, largest = [], []
    for epoch in planned(job):
        for batch in epoch.tolist():
            for one in batch:
                mates[one] |= {*batch} - {one}
            found = Counter(k // job.shard_utterances for k in batch)
            shards.append(len(found))
            largest.append(max(found.values()) / len(batch))
    count = [len(each) for each in mates.values()]
    return float(np.mean(count)), float(np.mean(shards)), float(np.mean(largest))


@pytest.mark.parametrize("job", [SMALL, ShuffleCase(shards=1, shard_utterances=40, batch=16, epochs=3, group_rows=0)])
def test_counts_are_those_of_sets(job: ShuffleCase) -> None:
    figures = measure(job)
    assert figures["sampled"] == job.utterances
    mates, shards, largest = by_hand(job)
    assert figures["mates"] == pytest.approx(mates)
    assert figures["shards_per_batch"] == pytest.approx(shards)
    assert figures["largest_shard_share"] == pytest.approx(largest)


def test_a_sample_has_exact_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its own utterances: the mean over all samples is the mean over all utterances."""
    monkeypatch.setattr(shuffle, "_SAMPLE_BYTES", 4 * SMALL.batch * SMALL.epochs * 20)
    figures = measure(SMALL)
    assert figures["sampled"] == 20
    assert float(figures["mates"]) == pytest.approx(by_hand(SMALL)[0], abs=1)


def test_batches_are_whole_and_every_utterance_comes_once() -> None:
    for epoch in planned(SMALL):
        assert epoch.shape == (65 // 8, 8)
        assert len(np.unique(epoch)) == epoch.size


def test_the_size_of_the_issue() -> None:
    figures = measure(ShuffleCase())
    assert float(figures["share"]) > 0.9
    assert float(figures["mates_full"]) == pytest.approx(float(figures["mates_full_expected"]), rel=0.002)
    assert float(figures["mates_pool"]) < 0.3 * float(figures["mates_full"])


def test_one_shard_at_a_time_would_be_seen() -> None:
    """Windows and units of one shard: the utterances of a shard meet only each other."""
    figures = measure(ShuffleCase(shards=16, shard_utterances=64, batch=16, shuffle_shards=1, unit_rows=64))
    assert figures["mates"] == pytest.approx(float(figures["mates_pool"]), rel=0.01)
    assert float(figures["share"]) < 0.3
    assert (figures["shards_per_batch"], figures["largest_shard_share"]) == (1, 1)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shards 4 --shard-utterances 32 --batch 8 --epochs 2 --shuffle-shards 2 --unit-rows 16 --group-rows 8"
    assert main(["bench", "shuffle", *options.split(), "--seed", "1", "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])
    assert (figures["utterances"], figures["group_rows"], figures["seed"]) == (128, 8, 1)
    assert 0 < figures["share"] <= 1.1
    assert printed[:-1] == table(figures).splitlines()


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (ShuffleCase(shards=2, shard_utterances=4, batch=9), "--batch 9 must lie in 2..8"),
        (ShuffleCase(unit_rows=0), "--unit-rows must be at least 1, got 0"),
        (ShuffleCase(group_rows=-1), "--group-rows and --seed must not be negative"),
    ],
)
def test_jobs_that_cannot_be(job: ShuffleCase, line: str) -> None:
    with pytest.raises(UserError, match=line):
        measure(job)

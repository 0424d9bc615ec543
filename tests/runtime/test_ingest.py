"""How many tasks read, how far ahead and where; and what a task yields, without a cluster."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayssl.batches import plan
from rayssl.batches.plan import Cursor
from rayssl.batches.streams import Stream
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError, StorageError
from rayssl.experiment.job import Job, job_of
from rayssl.runtime import ingest
from rayssl.views import reading
from rayssl.views.packed import Packed
from rayssl.views.recipes import Segment, SegmentPlan
from tests.runs import experiment, write_corpus

MIB, GIB = 1 << 20, 1 << 30
CUT = (Segment(name="anchor", seconds=0.2), Segment(name="reference", seconds=0.3))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module ``ray`` that says what ``free`` and ``whole`` hold."""
    made = SimpleNamespace(free={"CPU": 32.0}, whole={"CPU": 32.0, "object_store_memory": 10.0 * GIB})
    ray = SimpleNamespace(available_resources=lambda: made.free, cluster_resources=lambda: made.whole)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder, (20, 20, 20))


def job(corpus: tuple[Path, Manifest], *changes: str, batch: int = 8) -> Job:
    """Two epochs with a stream of batches of ``batch``, which may be larger than the corpus."""
    changes = ("training.epochs=2", *changes)
    made = job_of(experiment(corpus[0] / "run", corpus[0], *changes, method={"name": "simclr"}), corpus[1])
    own = Stream(batch, max(1, 60 // batch), max(1, 60 // batch))
    return replace(made, own=own, segments=SegmentPlan((CUT,) * 2, ((),) * 2))


def test_readers_are_the_cores_that_training_leaves(
    cluster: SimpleNamespace, corpus: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less one for Ray Data; at least one for each rank; or as many as the configuration says."""
    assert ingest.reader_count(job(corpus, "corpus.readers=5", "ray.workers=8")) == 5
    assert ingest.reader_count(job(corpus, "ray={workers: 4, cpus_per_worker: 3}", "memory.cpus=2")) == 32 - 12 - 2 - 1
    assert ingest.reader_count(job(corpus, "ray={workers: 4, cpus_per_worker: 3}", "memory.cpus=0.5")) == 18
    cluster.free = {"CPU": 9.0}  # somebody else holds the rest
    assert ingest.reader_count(job(corpus, "ray={workers: 2, cpus_per_worker: 2}", "memory.cpus=0")) == 4
    assert ingest.reader_count(job(corpus, "ray={workers: 8, cpus_per_worker: 4}")) == 8
    cluster.free = {}
    assert ingest.reader_count(job(corpus, "ray.workers=2")) == 2
    # a cluster of this process has more logical CPUs than cores
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    cluster.free = cluster.whole = {"CPU": 16.0 + 5}
    assert ingest.reader_count(job(corpus, "ray={workers: 2, cpus_per_worker: 2}", "memory.cpus=0")) == 16 - 4 - 1


def test_spare_tasks_wait_for_the_next_turn() -> None:
    assert [ingest.tasks_at_once(readers) for readers in (1, 2, 4, 5, 30)] == [3, 4, 6, 7, 45]


def test_what_is_read_ahead_is_bounded(cluster: SimpleNamespace, corpus: tuple[Path, Manifest]) -> None:
    """A unit for each reader and four more, twice, as Ray Data keeps half in reserve; at least 256 MiB a rank; never
    more than a share of the object store."""
    small = job(corpus, "ray.workers=2")
    assert ingest.ahead_bytes(small, "train", 10) == 2 * 256 * MIB
    rows = plan.unit_steps(512, 1024) * 512
    manifest = corpus[1].model_copy(update={"seconds": 60 * 8.0})
    large = replace(job(corpus, "corpus.unit_rows=1024", batch=512), manifest=manifest)
    each = 2 * 16000 * 0.5  # both segments, as the utterances are longer
    assert ingest.ahead_bytes(large, "train", 30) == 2 * (45 + 3) * rows * each
    assert ingest.ahead_bytes(large, "train", 1000) == 0.4 * 10 * GIB
    cluster.whole = {"CPU": 32.0, "object_store_memory": 400.0 * MIB}
    assert ingest.ahead_bytes(large, "train", 30) == 256 * MIB
    cluster.whole = {}
    assert ingest.ahead_bytes(large, "train", 30) == 256 * MIB


def test_streams_share_the_object_store_and_the_longest_segments_count(
    cluster: SimpleNamespace, corpus: tuple[Path, Manifest]
) -> None:
    manifest = corpus[1].model_copy(update={"seconds": 60 * 8.0})
    one = replace(job(corpus, "corpus.unit_rows=1024", batch=512), manifest=manifest)
    labelled = Stream(256, 1, 1, cycles=True)
    two = replace(one, labelled=labelled, segments=replace(one.segments, labelled=CUT[:1]))
    assert ingest.ahead_bytes(one, "train", 1000) == 2 * ingest.ahead_bytes(two, "train", 1000) == 0.4 * 10 * GIB
    assert ingest.ahead_bytes(two, "labelled", 100) == 2 * (150 + 3) * 1024 * 2 * 16000 * 0.2
    later = replace(one, segments=SegmentPlan((CUT[:1], CUT), ((), ())))
    assert ingest.ahead_bytes(later, "train", 30) == ingest.ahead_bytes(one, "train", 30)


class Affinity:
    """Ray's scheduling strategy."""

    def __init__(self, node: str, soft: bool) -> None:
        self.node, self.soft = node, soft


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(
        sys.modules["ray.util.scheduling_strategies"], "NodeAffinitySchedulingStrategy", Affinity, raising=False
    )


@pytest.mark.parametrize(
    ("nodes", "lanes", "expected"),
    [
        ("aabb", 1, "abab"),  # a task serves all ranks
        ("aabb", 2, "abab"),
        ("aabb", 4, "aabbaabb"),
        ("aaabbb", 2, "abab"),
        ("abab", 4, "abababab"),
        ("abcd", 2, "acac"),
    ],
)
def test_tasks_run_on_the_nodes_of_the_ranks_that_they_serve(
    strategies: None, nodes: str, lanes: int, expected: str
) -> None:
    placement = ingest.Placement(list(nodes), lanes)
    found = [placement() for _ in expected]
    assert "".join(each["scheduling_strategy"].node for each in found) == expected
    assert all(each["scheduling_strategy"].soft for each in found)  # a node may be lost


def tables(made: Job, name: str = "train") -> Iterator[tuple[Any, list[pa.Table]]]:
    """Each unit and what its task yields; units come as the listing task writes them."""
    planner = ingest._Planner(made, name, Cursor(), made.experiment.training.epochs)
    reader = pickle.loads(pickle.dumps(ingest._Reader(made, name)))
    for row in planner(None):
        (text,) = row["unit"]
        unit = ingest._unit(text)
        assert unit is None or ingest._written(unit) == text
        yield unit, list(reader({"unit": [text]}))


@pytest.mark.parametrize(("workers", "part_rows"), [(1, 256), (2, 256), (2, 4), (4, 2), (4, 4)])
def test_a_task_yields_the_units_blocks_for_each_rank_of_its_lane_in_turn(
    corpus: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch, workers: int, part_rows: int
) -> None:
    monkeypatch.setattr(plan, "_PART_ROWS", part_rows)
    made = job(corpus, f"ray.workers={workers}", "corpus.unit_rows=16")
    settings, ranks = made.read_settings("train", workers), list[int]()
    units = list(made.units("train", Cursor(), 2, workers)())
    found = list(tables(made))
    assert [unit for unit, _ in found] == units
    for unit, blocks in found:
        expected = list(reading.read(unit, settings, CUT))
        assert len(blocks) == len(expected)
        for table, packed in zip(blocks, expected, strict=True):
            again = Packed.of(table)
            assert (again.epoch, again.first_step, again.steps) == (packed.epoch, packed.first_step, packed.steps)
            np.testing.assert_array_equal(again.pcm, packed.pcm)
            ranks.append(again.rank)
    assert ranks == [k % workers for k in range(len(ranks))]  # as the splitter deals blocks


@pytest.mark.parametrize("part_rows", [256, 4])
@pytest.mark.parametrize("most", [1, 1 << 30])
def test_an_error_becomes_the_rows_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int, most: int
) -> None:
    """So each rank of the lane gets as many rows as without it, and the first one that is bad raises it."""
    monkeypatch.setattr(plan, "_PART_ROWS", part_rows)
    monkeypatch.setattr(reading, "_BLOCK_BYTES", most)
    manifest = write_corpus(tmp_path, (20, 20, 20), corrupt=33)
    sound = write_corpus(tmp_path / "sound", (20, 20, 20))
    two = ("ray.workers=2", "corpus.unit_rows=16")
    bad = list(tables(job((tmp_path, manifest), *two)))
    good = list(tables(job((tmp_path / "sound", sound), *two)))
    failed = 0
    for (_, blocks), (_, expected) in zip(bad, good, strict=True):
        assert len(blocks) == len(expected)
        errors = ["error" in table.column_names for table in blocks]
        assert errors == sorted(errors)  # none comes after one
        failed += any(errors)
        for table in blocks[errors.count(False) :]:
            with pytest.raises(CorpusError, match=r"shards/00001\.parquet: utterance 'utt033': damaged audio"):
                list(ingest.packed(Batches([table]), 0))
    assert 0 < failed < len(bad)


def test_an_error_of_the_plan_comes_to_each_rank_after_the_units_before_it(
    corpus: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(corpus, "ray.workers=2", "corpus.unit_rows=16")
    good = list(tables(made))
    honest = Job.units

    def units(self: Job, *args: Any) -> Any:
        def some() -> Iterator[Any]:
            yield from itertools.islice(honest(self, *args)(), 2)
            raise CorpusError("s3://b/nights.parquet: other bytes than the manifest lists")

        return some

    monkeypatch.setattr(Job, "units", units)
    *bad, (unit, blocks) = tables(made)
    assert [each for each, _ in bad] == [each for each, _ in good[:2]]
    assert unit is None and len(blocks) == 2
    for table in blocks:
        with pytest.raises(CorpusError, match=r"^s3://b/nights.parquet: other bytes than the manifest lists$"):
            list(ingest.packed(Batches([table]), 0))


class Batches:
    """Ray's iterator of a rank."""

    def __init__(self, found: list[pa.Table]) -> None:
        self.found = found

    def iter_batches(self, **how: Any) -> Iterator[pa.Table]:
        assert how["batch_size"] is None and how["batch_format"] == "pyarrow"
        return iter(self.found)


def test_a_batch_of_another_rank_is_never_trained_on(corpus: tuple[Path, Manifest]) -> None:
    made = job(corpus, "ray.workers=2", "corpus.unit_rows=16")
    _, blocks = next(tables(made))
    assert [packed.rank for packed in ingest.packed(Batches(blocks[:1]), 0)] == [0]
    with pytest.raises(RuntimeError, match=r"the batch of rank 1 \(epoch 0, step 0\) came to 0"):
        list(ingest.packed(Batches(blocks[:2]), 0))


def test_a_storage_error_keeps_its_kind() -> None:
    failed = pa.table({"error": ["StorageError"], "message": ["s3://b/c: no such file"]})
    with pytest.raises(StorageError, match="s3://b/c: no such file"):
        list(ingest.packed(Batches([failed]), 0))


def test_what_is_sent_to_a_task_imports_no_torch(corpus: tuple[Path, Manifest], tmp_path: Path) -> None:
    """A method's or an encoder's settings would."""
    reader = tmp_path / "reader"
    reader.write_bytes(pickle.dumps(ingest._Reader(job(corpus, "ray.workers=2"), "train")))
    code = f"import pickle, sys\npickle.loads(open({str(reader)!r}, 'rb').read())\n"
    code += "sys.exit(bool({'torch', 'ray', 'rayssl.methods', 'rayssl.models'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

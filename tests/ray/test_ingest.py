"""What two consumers of Ray Data's split get is what `rayssl.batches.plan` says, from any cursor, in order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.batches import plan
from rayssl.batches.plan import Cursor
from rayssl.batches.streams import Stream
from rayssl.data import shards
from rayssl.errors import CorpusError, StorageError
from rayssl.experiment.job import Job, job_of
from rayssl.views import reading
from rayssl.views.recipes import Segment, SegmentPlan
from tests.data.corpora import write_labelled
from tests.runs import experiment
from tests.small_experiment import write_corpus

pytestmark = pytest.mark.ray

BATCH, EPOCHS, SEED, UNIT_ROWS = 16, 3, 5, 20
SHORT = (Segment(name="anchor", seconds=0.2, recipe="distort"),)
LONG = (*SHORT, Segment(name="reference", seconds=0.4))
SEGMENTS = [SHORT, LONG, LONG]  # another recipe from the second epoch on, as SSPS has it
FILLS = [(), (), LONG[1:]]  # and before the third a pass that fills the memory
STREAM = Stream(BATCH, 90 // BATCH, 90 // BATCH)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, shards.Manifest]:
    uri = str(tmp_path_factory.mktemp("ingest") / "corpus")
    return uri, write_corpus(uri, 90)


def expected(made: Job, start: Cursor) -> list[list[dict[str, Any]]]:
    """The batches of each rank, read in this process as the plan of one rank says, and divided here."""
    ranks, found = made.experiment.ray.workers, list[dict[str, Any]]()
    for unit in made.units("train", start, EPOCHS, 1)():
        segments = made.segments_of("train", unit.epoch, fill=unit.fill)
        for packed in reading.read(unit, made.read_settings("train", 1), segments):
            found += packed.batches()
    size = made.own.batch // ranks
    facts = ("epoch", "step", "fill")
    return [
        [
            {
                name: raw[name] if name in facts else raw[name][rank * size : (rank + 1) * size]
                for name in raw
                if name != "rank"
            }
            | {"rank": rank}
            for raw in found
        ]
        for rank in range(ranks)
    ]


def job(uri: str, manifest: shards.Manifest, ranks: int, *more: str) -> Job:
    """One over the corpus, with the segments and the stream of above."""
    changes = [f"seed={SEED}", f"corpus.unit_rows={UNIT_ROWS}", f"training={{batch: {BATCH}, epochs: {EPOCHS}}}"]
    changes.append("corpus.shuffle_shards=3")
    settings = experiment(
        Path(uri) / "run", Path(uri), *changes, f"ray.workers={ranks}", *more, method={"name": "simclr"}
    )
    return replace(job_of(settings, manifest), segments=SegmentPlan(tuple(SEGMENTS), tuple(FILLS)), own=STREAM)


def consume(
    made: Job, start: Cursor, slow: int = -1, readers: int = 1, name: str = "train"
) -> list[list[dict[str, Any]]]:
    """The batches that each of the job's ranks gets, which all consume at once; number ``slow`` dawdles.

    Raises the error of rank 0, if there is one; then all ranks have one like it.
    """
    from rayssl.runtime import ingest

    ranks = made.experiment.ray.workers
    found = ingest.dataset(made, name, start=start, epoch_count=EPOCHS, readers=readers)
    found.context.execution_options.preserve_order = True
    iterators = found.streaming_split(ranks, equal=True)
    taken: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    failures: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            for packed in ingest.packed(iterators[rank], rank):
                taken[rank] += packed.batches()
                time.sleep(0.03 if rank == slow else 0)
        except BaseException as error:
            failures[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a consumer hangs"
    if failures:
        assert {(type(error), str(error)) for error in failures.values()} == {(type(failures[0]), str(failures[0]))}
        assert sorted(failures) == list(range(ranks))
        raise failures[0]
    return taken


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    arrays = left.keys() - {"epoch", "step", "rank", "fill"}
    return (
        left.keys() == right.keys()
        and [left[key] for key in ("epoch", "step", "rank", "fill")]
        == [right[key] for key in ("epoch", "step", "rank", "fill")]
        and all(left[key].dtype == right[key].dtype and np.array_equal(left[key], right[key]) for key in arrays)
    )


def assert_each_gets_its_own(taken: list[list[dict[str, Any]]], wanted: list[list[dict[str, Any]]]) -> None:
    for got, due in zip(taken, wanted, strict=True):
        assert [same(a, b) for a, b in zip(got, due, strict=True)] == [True] * len(due)


def tasks_do(
    monkeypatch: pytest.MonkeyPatch, behave: Callable[[Any, Callable[[], Iterator[Any]]], Iterator[Any]]
) -> None:
    """Data tasks run ``behave`` with their unit, and with what they would do."""
    from rayssl.runtime import ingest

    honest = ingest._Reader.__call__

    def changed(self: Any, items: Any) -> Iterator[Any]:
        yield from behave(ingest._unit(str(items["unit"][0])), lambda: honest(self, items))

    class Reader(ingest._Reader):
        __call__ = changed

    Reader.__module__ = "__main__"  # so that the tasks are sent its code instead of this module's name
    monkeypatch.setattr(ingest, "_Reader", Reader)


@pytest.mark.parametrize(("start", "ranks", "slow"), [(Cursor(), 2, 1), (Cursor(1, 3), 2, 0), (Cursor(2, 4), 1, 0)])
def test_every_rank_gets_its_batches_in_order(
    ray_cluster: Any,
    corpus: tuple[str, shards.Manifest],
    monkeypatch: pytest.MonkeyPatch,
    start: Cursor,
    ranks: int,
    slow: int,
) -> None:
    """Tasks take unequal time, so that they end in another order than they began; one consumer is slow."""

    def jittered(unit: Any, honest: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        for count, table in enumerate(honest()):
            time.sleep(0.1 * ((unit.first_step * 7 + count) % 3 == 0))
            yield table

    tasks_do(monkeypatch, jittered)
    uri, manifest = corpus
    made = job(uri, manifest, ranks)
    taken = consume(made, start, slow, readers=3)
    steps = plan.steps_per_epoch(manifest.rows, BATCH) * (EPOCHS - start.epoch) - start.step
    steps += -(-manifest.rows // BATCH) * (start.epoch < 2)  # the pass before the third epoch
    assert [len(part) for part in taken] == [steps] * ranks
    assert (taken[0][0]["epoch"], taken[0][0]["step"]) == (start.epoch, start.step)
    assert_each_gets_its_own(taken, expected(made, start))


def test_several_blocks_in_a_unit(
    ray_cluster: Any, corpus: tuple[str, shards.Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank is sent one batch at once, although a unit has five."""

    def one_at_once(unit: Any, honest: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        before = reading._BLOCK_BYTES
        reading._BLOCK_BYTES = 1
        try:
            tables = list(honest())
        finally:
            reading._BLOCK_BYTES = before  # this process will run other tasks
        assert len(tables) == 2 * unit.steps
        yield from tables

    tasks_do(monkeypatch, one_at_once)
    made = job(*corpus, 2, "corpus.unit_rows=80")
    assert {unit.steps for unit in made.units("train", Cursor(), 1, 2)()} == {5}
    assert_each_gets_its_own(consume(made, Cursor(), 1, readers=2), expected(made, Cursor()))


@pytest.mark.parametrize(("ranks", "lanes"), [(4, 2), (3, 1)])
def test_several_tasks_serve_the_ranks_of_a_step(ray_cluster: Any, tmp_path: Path, ranks: int, lanes: int) -> None:
    """A batch of 516 has two parts, so there are two lanes if the ranks can be halved; the stream resumes inside."""
    batch, rows = 516, 1600
    uri = str(tmp_path / "corpus")
    manifest = write_labelled(uri, [-1] * rows, [], {}, [160] * 10)
    cut = (Segment(name="anchor", seconds=0.02),)
    made = job(uri, manifest, ranks, f"training.batch={batch}", "corpus.unit_rows=516")
    made = replace(made, own=Stream(batch, 3, 3), segments=SegmentPlan((cut,) * EPOCHS, ((),) * EPOCHS))
    units = list(made.units("train", Cursor(1, 1), EPOCHS, ranks)())
    assert {unit.lanes for unit in units} == {lanes} and units[0].first_step == units[0].begin + 1
    taken = consume(made, Cursor(1, 1), 1, readers=3)
    assert [len(part) for part in taken] == [5] * ranks
    assert_each_gets_its_own(taken, expected(made, Cursor(1, 1)))


@pytest.mark.parametrize("after", [0, 1])
def test_a_task_that_is_killed_is_repeated(
    ray_cluster: Any, corpus: tuple[str, shards.Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Its process dies in the middle of an epoch, before or between its blocks: the same batches arrive."""
    died = tmp_path / "died"

    def deadly(unit: Any, honest: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        for count, table in enumerate(honest()):
            if (unit.epoch, unit.first_step, count) == (1, 2, after) and not died.exists():
                died.write_text(str(os.getpid()))
                time.sleep(0.5)  # so that what came before has left
                os.kill(os.getpid(), signal.SIGKILL)
            yield table

    tasks_do(monkeypatch, deadly)
    made = job(*corpus, 2)
    taken = consume(made, Cursor(), readers=2)
    assert int(died.read_text()) != os.getpid()
    assert_each_gets_its_own(taken, expected(made, Cursor()))


def test_damaged_audio_is_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")
    manifest = write_corpus(uri, 64, damaged=37)
    with pytest.raises(CorpusError) as caught:
        consume(job(uri, manifest, 2), Cursor(), 0)
    line = f"{uri}/shards/00002.parquet: utterance 's5/r0/037': damaged audio in a shard: not FLAC"
    assert str(caught.value) == f"{line}; run rayssl prepare --verify"


def test_an_absent_shard_is_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")
    manifest = write_corpus(uri, 64)
    (tmp_path / "corpus" / manifest.shards[1].path).unlink()
    with pytest.raises(StorageError) as caught:
        consume(job(uri, manifest, 2), Cursor())
    assert str(caught.value) == f"{uri}/shards/00001.parquet: no such file"

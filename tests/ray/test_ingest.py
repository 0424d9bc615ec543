"""What two consumers of Ray Data's split get is what `rayssl.batches.plan` says, from any cursor, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
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


def expected(uri: str, manifest: shards.Manifest, start: Cursor, ranks: int) -> Iterator[dict[str, Any]]:
    kept = {"seed": SEED, "batch": BATCH}
    for unit in plan.plan(manifest, epochs=EPOCHS, start=start, unit_rows=UNIT_ROWS, fills=[2], **kept):
        segments = (FILLS if unit.fill else SEGMENTS)[unit.epoch]
        yield from reading.read(unit, uri, manifest, ranks=ranks, segments=segments, **kept)


def job(uri: str, manifest: shards.Manifest, ranks: int) -> Job:
    """One over the corpus, with the segments and the stream of above."""
    changes = [f"seed={SEED}", f"corpus.unit_rows={UNIT_ROWS}", f"training={{batch: {BATCH}, epochs: {EPOCHS}}}"]
    settings = experiment(Path(uri) / "run", Path(uri), *changes, f"ray.workers={ranks}", method={"name": "simclr"})
    return replace(job_of(settings, manifest), segments=SegmentPlan(tuple(SEGMENTS), tuple(FILLS)), own=STREAM)


def consume(uri: str, manifest: shards.Manifest, start: Cursor, ranks: int, slow: int) -> list[list[dict[str, Any]]]:
    """The batches that each of ``ranks`` concurrent consumers gets; number ``slow`` dawdles."""
    from rayssl.runtime import ingest

    found = ingest.dataset(job(uri, manifest, ranks), "train", start=start, epoch_count=EPOCHS)
    found.context.execution_options.preserve_order = True
    iterators = found.streaming_split(ranks, equal=True)
    taken: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            for raw in ingest.batches(iterators[rank], rank):
                taken[rank].append(raw)
                time.sleep(0.03 if rank == slow else 0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a consumer hangs"
    if failures:
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
    from rayssl.runtime import ingest

    honest = ingest._Reader.__call__

    def jittered(self: Any, items: Any) -> Iterator[Any]:
        for row in honest(self, items):
            time.sleep(0.1 * ((int(row["step"][0]) * 7 + int(row["rank"][0])) % 3 == 0))
            yield row

    class Reader(ingest._Reader):
        __call__ = jittered

    Reader.__module__ = "__main__"  # so that the tasks are sent its code instead of this module's name
    monkeypatch.setattr(ingest, "_Reader", Reader)
    uri, manifest = corpus
    wanted: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    for raw in expected(uri, manifest, start, ranks):
        wanted[raw["rank"]].append(raw)
    taken = consume(uri, manifest, start, ranks, slow)
    steps = plan.steps_per_epoch(manifest.rows, BATCH) * (EPOCHS - start.epoch) - start.step
    steps += -(-manifest.rows // BATCH) * (start.epoch < 2)  # the pass before the third epoch
    assert [len(part) for part in taken] == [steps] * ranks
    assert (taken[0][0]["epoch"], taken[0][0]["step"]) == (start.epoch, start.step)
    for got, due in zip(taken, wanted, strict=True):
        assert [same(a, b) for a, b in zip(got, due, strict=True)] == [True] * steps


def test_damaged_audio_is_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")
    manifest = write_corpus(uri, 64, damaged=37)
    with pytest.raises(CorpusError) as caught:
        consume(uri, manifest, Cursor(), 2, 0)
    line = f"{uri}/shards/00002.parquet: utterance 's5/r0/037': damaged audio in a shard: not FLAC"
    assert str(caught.value) == f"{line}; run rayssl prepare --verify"


def test_an_absent_shard_is_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")
    manifest = write_corpus(uri, 64)
    (tmp_path / "corpus" / manifest.shards[1].path).unlink()
    with pytest.raises(StorageError) as caught:
        consume(uri, manifest, Cursor(), 1, 0)
    assert str(caught.value) == f"{uri}/shards/00001.parquet: no such file"

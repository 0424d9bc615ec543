"""Prototypes, anchors and histogram in actors are those of one memory fed in rank order, for any number of actors."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.errors import CheckpointError
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.classes.memory import ClassMemory, ClassRecallArrays, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.training.inputs import from_classes

pytestmark = pytest.mark.ray

WORLD, BATCH, STEPS = 2, 5, 9
SETTINGS = ClassSettings(classes=7, dim=6, length=4, window=3, anchors=3)


def found(step: int, rank: int) -> tuple[ClassRememberArrays, ClassRememberArrays]:
    """What a rank gives in a step: labelled features, of which class 5 has none, and later counts of predictions."""
    rng = np.random.default_rng([step, rank])
    labels = rng.choice([0, 1, 2, 3, 4, 6], BATCH)
    features = rng.normal(size=(BATCH, 6)).astype(np.float32)
    return ClassRememberArrays(step, features, labels), ClassRememberArrays(
        step, None, labels[:0], rng.integers(0, 9, 7)
    )


def in_process(memory: ClassMemory, steps: range) -> dict[int, ClassRecallArrays]:
    recalls = {}
    for step in steps:
        for rank in range(WORLD):
            memory.remember(found(step, rank)[0])
        recalls[step] = memory.recall(step)
        for rank in range(WORLD):
            memory.remember(found(step, rank)[1])
    return recalls


class Job:
    """Two ranks of a memory in ``shards`` actors, in two threads of this process."""

    def __init__(self, shards: int, sync: str = "strict", settings: ClassSettings = SETTINGS) -> None:
        from rayssl.runtime.memory.classes import Caller, start

        config = MemoryConfig.model_validate({"shards": shards, "sync": sync})
        names = [f"test-{time.perf_counter_ns()}-{shard}" for shard in range(shards)]
        self.actors = start(settings, WORLD, config, names)
        self.ranks = [Caller(self.actors, rank, sync == "strict") for rank in range(WORLD)]

    def run(self, steps: range) -> dict[tuple[int, int], ClassRecallArrays]:
        """Each rank as fast as a random walk lets it."""
        recalls: dict[tuple[int, int], ClassRecallArrays] = {}

        def one(rank: int) -> None:
            rng = np.random.default_rng([1, rank])
            for step in steps:
                time.sleep(rng.uniform(0, 0.02))
                features, counts = found(step, rank)
                answer = self.ranks[rank](features, step).result(timeout=30)
                assert answer is not None
                recalls[step, rank] = answer
                counted = self.ranks[rank](counts, None)
            counted.result(timeout=30)

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(WORLD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return recalls

    def end(self, ray: Any) -> None:
        for actor in self.actors:
            ray.kill(actor)


def equal(mine: ClassRecallArrays, theirs: ClassRecallArrays) -> None:
    assert vars(mine).keys() == vars(theirs).keys() > {"prototypes", "rows"}
    for name, array in vars(theirs).items():
        assert getattr(mine, name).dtype == array.dtype
        np.testing.assert_array_equal(getattr(mine, name), array, err_msg=name)


@pytest.mark.parametrize("shards", [1, 2])
def test_actors_are_one_memory_and_any_number_reads_what_another_wrote(
    ray_cluster: Any, tmp_path: Path, shards: int
) -> None:
    expected = in_process(ClassMemory(SETTINGS), range(STEPS))
    assert not expected[8].present[5] and expected[8].histogram.sum() > 0
    assert expected[8].filled.tolist() == [3, 3, 3, 3, 3, 0, 3] and min(expected[0].filled[:5]) < 3
    first = Job(shards)
    recalls = first.run(range(5))
    folder = str(tmp_path)
    records: dict[str, Any] = {}
    for actor in first.actors:
        ray_cluster.get(actor.snapshot.remote())
        records |= ray_cluster.get(actor.save.remote(folder))
    first.end(ray_cluster)
    second = Job(3 - shards)
    ray_cluster.get([actor.load.remote(folder, records) for actor in second.actors])
    recalls |= second.run(range(5, STEPS))
    assert len(recalls) == STEPS * WORLD
    for (step, _), recall in recalls.items():
        equal(recall, expected[step])
    figures = ray_cluster.get([actor.metrics.remote() for actor in second.actors])
    assert all(each["staleness_steps"] == 0 for each in figures)
    damaged = next(name for name in records if name != "memory-index.npz")
    (tmp_path / damaged).write_bytes(b"other")
    with pytest.raises(CheckpointError, match=rf"{damaged}: damaged"):
        ray_cluster.get([actor.load.remote(folder, records) for actor in second.actors])
    second.end(ray_cluster)


def test_ahead_gives_the_answer_to_the_step_before(ray_cluster: Any) -> None:
    job = Job(1, "ahead")
    call = job.ranks[0]
    answers = [call(found(step, 0)[0], step).result(timeout=30) for step in range(4)]
    memory, expected = ClassMemory(SETTINGS), []
    for step in range(4):
        memory.remember(found(step, 0)[0])
        expected.append(memory.recall(step))
    for mine, theirs in zip(answers, [expected[0], *expected[:3]], strict=True):
        assert mine is not None
        equal(mine, theirs)
    call(found(4, 0)[0], None).result(timeout=30)  # its own answer: what came before it is done, or is not counted yet
    behind = ray_cluster.get(job.actors[0].metrics.remote())["staleness_steps"]
    assert behind == pytest.approx(1.5)  # rank 1 has not called at all: 1, 2, 3, 4, 5 calls, two of which make a step
    job.end(ray_cluster)


@pytest.mark.parametrize("shards", [1, 2])
def test_many_anchors_are_read_where_ray_keeps_them(ray_cluster: Any, shards: int) -> None:
    """An answer of one actor is not copied on its way: it is read-only. Tensors made of it are the method's own."""
    settings = ClassSettings(classes=4, dim=128, length=300, anchors=200)
    job, memory, rng = Job(shards, settings=settings), ClassMemory(settings), np.random.default_rng(0)
    answers = []
    for step in range(3):
        for rank, call in enumerate(job.ranks):
            features, labels = rng.normal(size=(240, 128)).astype(np.float32), rng.integers(0, 4 - rank, 240)
            memory.remember(given := ClassRememberArrays(step, features, labels))
            answers.append((step, call(given, step)))
        for _, answer in answers[-2:]:
            recall = answer.result(timeout=30)
            assert recall is not None and recall.rows.nbytes == 4 * 4 * 200 * 128
            equal(recall, memory.recall(step))
            assert recall.rows.flags.writeable == (shards > 1)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tensors = from_classes(recall, torch.device("cpu"))
            tensors.rows.zero_()
            assert recall.rows.any()
    assert recall.filled[0] == 200 > recall.filled[3] > 0
    job.end(ray_cluster)

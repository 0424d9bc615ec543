"""The state in actors is that of one memory fed in rank order, for any number of actors."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.errors import CheckpointError
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.classes.memory import ClassMemory, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.training import pieces

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


def in_process(steps: range) -> ClassMemory:
    """The memory after ``steps``, as if all ranks were one."""
    memory = ClassMemory(SETTINGS)
    for step in steps:
        for part in range(2):
            for rank in range(WORLD):
                memory.remember(found(step, rank)[part])
    return memory


class Job:
    """Two ranks of a memory in ``shards`` actors, in two threads of this process."""

    def __init__(self, shards: int, sync: str = "strict") -> None:
        from rayssl.runtime.memory.classes import Caller, start

        config = MemoryConfig.model_validate({"shards": shards, "sync": sync})
        names = [f"test-{time.perf_counter_ns()}-{shard}" for shard in range(shards)]
        self.actors = start(SETTINGS, WORLD, config, names)
        self.ranks = [Caller(self.actors, rank) for rank in range(WORLD)]

    def run(self, steps: range) -> None:
        """Each rank as fast as a random walk lets it."""

        def one(rank: int) -> None:
            rng = np.random.default_rng([1, rank])
            for step in steps:
                time.sleep(rng.uniform(0, 0.02))
                for part in found(step, rank):
                    self.ranks[rank](part).result(timeout=60)

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(WORLD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def save(self, ray: Any, folder: str) -> dict[str, Any]:
        """The records of what the actors write, as a checkpoint."""
        records: dict[str, Any] = {}
        for actor in self.actors:
            ray.get(actor.snapshot.remote())
            records |= ray.get(actor.save.remote(folder))
        return records

    def end(self, ray: Any) -> None:
        for actor in self.actors:
            ray.kill(actor)


def equal(folder: str, records: dict[str, Any], memory: ClassMemory) -> None:
    """Whether what was written is the state of ``memory``, and what it recalls."""
    read = ClassMemory(SETTINGS)
    read.restore(pieces.read_index(folder, records), pieces.reader(folder, records))
    mine, theirs = read.state_dict(), memory.state_dict()
    assert mine.keys() == theirs.keys() > {"classes.rows"}
    for name, array in theirs.items():
        assert mine[name].dtype == array.dtype
        np.testing.assert_array_equal(mine[name], array, err_msg=name)


@pytest.mark.parametrize("shards", [1, 2])
def test_actors_are_one_memory_and_any_number_reads_what_another_wrote(
    ray_cluster: Any, tmp_path: Path, shards: int
) -> None:
    first, half = Job(shards), str(tmp_path / "half")
    first.run(range(5))
    records = first.save(ray_cluster, half)
    first.end(ray_cluster)
    equal(half, records, in_process(range(5)))
    second = Job(3 - shards)
    ray_cluster.get([actor.load.remote(half, records) for actor in second.actors])
    second.run(range(5, STEPS))
    whole = in_process(range(STEPS))
    recall = whole.recall(STEPS - 1)
    assert not recall.present[5] and recall.histogram.sum() > 0 and recall.filled.tolist() == [3, 3, 3, 3, 3, 0, 3]
    equal(str(tmp_path / "whole"), second.save(ray_cluster, str(tmp_path / "whole")), whole)
    damaged = next(name for name in records if name != "memory-index.npz")
    (tmp_path / "half" / damaged).write_bytes(b"other")
    with pytest.raises(CheckpointError, match=rf"{damaged}: damaged"):
        ray_cluster.get([actor.load.remote(half, records) for actor in second.actors])
    second.end(ray_cluster)


def test_strict_waits_for_every_rank_and_ahead_for_none(ray_cluster: Any) -> None:
    for sync in ("strict", "ahead"):
        job = Job(2, sync)
        first = job.ranks[1](found(0, 1)[0])
        assert bool(futures.wait([first], 0.5).done) == (sync == "ahead")
        job.ranks[0](found(0, 0)[0]).result(timeout=60)
        first.result(timeout=60)
        job.end(ray_cluster)


def test_an_error_of_an_actor_reaches_the_rank(ray_cluster: Any) -> None:
    job = Job(2, "ahead")
    wrong = ClassRememberArrays(0, np.zeros((1, 6), np.float32), np.array([9]))
    with pytest.raises(ValueError, match="labels must lie in"):
        job.ranks[0](wrong).result(timeout=60)
    job.end(ray_cluster)

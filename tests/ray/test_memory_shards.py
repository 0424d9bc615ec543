"""A memory over several actors does what one in a process does, and never gives another utterance's row."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from tests.ray.test_memory_actor import BATCH, EPOCHS, SETTINGS, STEPS, WORLD, following, ids, remembered
from tests.runs import arrays_of

pytestmark = pytest.mark.ray

KINDS: dict[str, dict[str, Any]] = {
    "cluster": {"overlapped": True, "warm_start": True},
    "merged": {"overlapped": True, "merged_from": 20},
    "nn": {"sampling": "nn", "neighbours": 3, "whiten": True, "positive_dtype": "float16"},
}


class Job:
    """Two ranks of one sharded memory, in two threads of this process; ``relayed``: on one node of several."""

    def __init__(self, ray: Any, settings: dict[str, Any], *, relayed: bool = False, **config: Any) -> None:
        from rayssl.runtime.memory import relay
        from rayssl.runtime.memory.sending import Exchanger
        from rayssl.runtime.memory.sharded import start

        self.ray, self.calls = ray, 0
        name = f"test-{time.perf_counter_ns()}"
        known = MemorySettings(**settings)
        self.index, self.stores = start(known, WORLD, MemoryConfig(threads=1, **config), name)
        self.send = Exchanger(known, self.index, self.stores)
        node = ray.get_runtime_context().get_node_id()
        self.relay = relay.start(f"{name}:node", node, range(WORLD), self.send) if relayed else None

    def exchange(
        self, rank: int, call: int, remember: list[RememberArrays], ids: np.ndarray | None, epoch: int
    ) -> RecallArrays | None:
        """The ``call``-th exchange of ``rank``."""
        from rayssl.runtime.memory.relay import Part

        if self.relay is not None:
            return self.ray.get(self.relay.exchange.remote(call, rank, remember, ids, epoch), timeout=60)
        return self.send(call, [Part(rank, remember, ids, epoch)])[0]

    def epoch(self, epoch: int, first: int = 0, last: int = STEPS) -> dict[Any, RecallArrays]:
        """Steps of an epoch, each rank as fast as a random walk lets it."""
        recalls: dict[Any, RecallArrays] = {}

        def run(rank: int) -> None:
            rng = np.random.default_rng([4, epoch, rank])
            for step in range(first, last):
                time.sleep(rng.uniform(0, 0.02))
                call, what = self.calls + step - first + 1, [remembered(epoch, step, rank)]
                answer = self.exchange(rank, call, what, following(epoch, step, rank), epoch)
                if answer is not None:
                    recalls[epoch, step, rank] = answer

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(WORLD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        self.calls += last - first
        return recalls

    def refresh(self, epoch: int) -> dict[str, float]:
        figures = self.ray.get(self.index.refresh.remote(epoch))
        return {name: value for name, value in figures.items() if name != "seconds"}

    def metrics(self) -> dict[str, float]:
        lost = sum(self.ray.get([store.lost_rows.remote() for store in self.stores]))
        return {k: v for k, v in self.ray.get(self.index.metrics.remote(lost)).items() if k != "staleness_steps"}

    def save(self, folder: Path) -> dict[str, Any]:
        actors = (self.index, *self.stores)
        self.ray.get([actor.snapshot.remote() for actor in actors])
        written = self.ray.get([actor.save.remote(str(folder)) for actor in actors])
        return {name: record for records in written for name, record in records.items()}

    def load(self, folder: Path, records: dict[str, Any]) -> None:
        self.ray.get([actor.restore.remote(str(folder), records) for actor in (self.index, *self.stores)])
        whitening = self.ray.get(self.index.commit.remote())
        self.ray.get([store.commit.remote(whitening) for store in self.stores])

    def kill(self) -> None:
        for actor in (self.index, *self.stores, *([self.relay] if self.relay else ())):
            self.ray.kill(actor)


def in_process(settings: dict[str, Any]) -> tuple[dict[Any, RecallArrays], list[Any], dict[str, np.ndarray]]:
    memory = UtteranceMemory(MemorySettings(**settings))
    recalls, seen = {}, []
    for epoch in range(EPOCHS):
        if epoch:
            seen.append({k: v for k, v in memory.refresh(epoch).items() if k != "seconds"})
        for step in range(STEPS):
            for rank in range(WORLD):
                memory.remember(remembered(epoch, step, rank))
            for rank in range(WORLD):
                wanted = following(epoch, step, rank)
                if wanted is not None:
                    recalls[epoch, step, rank] = memory.recall(wanted, epoch=epoch)
        seen.append(memory.metrics())
    return recalls, seen, memory.state_dict()


@pytest.fixture
def jobs(ray_cluster: Any) -> Iterator[Any]:
    made: list[Job] = []

    def make(settings: dict[str, Any], **config: Any) -> Job:
        made.append(Job(ray_cluster, settings, **config))
        return made[-1]

    yield make
    for job in made:
        job.kill()


@pytest.mark.parametrize(("kind", "relayed"), [("cluster", False), ("merged", True), ("nn", False), ("nn", True)])
def test_strict_equals_the_memory_in_process_and_resumes_after_the_actors_died(
    jobs: Any, kind: str, relayed: bool, tmp_path: Path
) -> None:
    """Three stores, saved and killed in the middle of the last epoch; two resume."""
    settings = {**SETTINGS, **KINDS[kind]}
    job, recalls, seen = jobs(settings, shards=3, relayed=relayed), {}, []
    for epoch in range(EPOCHS):
        if epoch:
            seen.append(job.refresh(epoch))
        if epoch < EPOCHS - 1:
            recalls |= job.epoch(epoch)
            seen.append(job.metrics())
    recalls |= job.epoch(EPOCHS - 1, last=4)
    records = job.save(tmp_path)
    job.kill()
    job = jobs(settings, shards=2, relayed=relayed)
    job.load(tmp_path, records)
    recalls |= job.epoch(EPOCHS - 1, first=4)
    seen.append(job.metrics())
    wanted, due, state = in_process(settings)
    assert recalls.keys() == wanted.keys()
    for key, recall in wanted.items():
        for name in ("rows", "found", "ids"):
            np.testing.assert_array_equal(getattr(recalls[key], name), getattr(recall, name), err_msg=f"{key} {name}")
    assert sum(recall.found.sum() for recall in wanted.values()) > 20, "nothing was recalled: nothing is compared"
    assert seen == due
    found = arrays_of(str(tmp_path / "end"), job.save(tmp_path / "end"))
    assert found.keys() == state.keys()
    assert [name for name in state if not np.array_equal(found[name], state[name])] == []


def named(epoch: int, step: int, rank: int) -> RememberArrays:
    """As `remembered`, with positives that say whose they are."""
    what = remembered(epoch, step, rank)
    return RememberArrays(what.ids, what.references, np.repeat(what.ids[:, None], 5, 1).astype(np.float32))


def test_ahead_never_gives_anothers_row(jobs: Any) -> None:
    """Both ranks write to few slots as fast as they can, so that the stores hear of them in another order."""
    settings = {**SETTINGS, "queue": 6, "clusters": 2, "neighbours": 0}
    job = jobs(settings, shards=2, sync="ahead")
    everyone = np.arange(SETTINGS["utterances"])
    rows = np.random.default_rng(0).standard_normal((len(everyone), 6)).astype(np.float32)
    job.exchange(0, 1, [RememberArrays(everyone, rows)], None, 0)
    job.refresh(1)
    found: list[tuple[int, int]] = []

    def run(rank: int) -> None:
        for number in range(60):
            what, wanted = [named(0, number % STEPS, rank)], ids(1, number % STEPS, rank)
            recall = job.exchange(rank, number + 2, what, wanted, 1)
            assert recall is not None
            assert (recall.ids[~recall.found] == -1).all() and not recall.rows[~recall.found].any()
            found.extend(zip(recall.ids[recall.found].tolist(), recall.rows[recall.found, 0].tolist(), strict=True))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(found) > 100
    assert [pair for pair in found if pair[0] != pair[1]] == []
    metrics = job.metrics()
    assert metrics["coverage"] * 2 * 60 * BATCH == pytest.approx(len(found))


def test_client_answers_in_order_and_says_what_is_wrong(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime.memory.client import connect
    from rayssl.runtime.memory.sharded import ShardedMemory
    from rayssl.training import pieces

    client = connect(MemorySettings(**SETTINGS), MemoryConfig(threads=1, shards=2), "runs/x")
    assert isinstance(client, ShardedMemory)
    futures = [client.exchange([remembered(0, step, 0)], ids(0, step + 1, 0), 0) for step in range(4)]
    assert all(not future.result(timeout=60).found.any() for future in futures)
    with pytest.raises(ValueError, match="ids must lie in"):
        client.exchange([], np.array([1000]), 0).result(timeout=60)
    assert client.metrics()["reference_fill"] == pytest.approx(4 * BATCH / SETTINGS["utterances"])
    records = pieces.write(str(tmp_path), UtteranceMemory(MemorySettings(**{**SETTINGS, "positive_dim": 4})).snapshot())
    before = client.snapshot()(str(tmp_path / "before"))
    with pytest.raises(ValueError, match=r"^memory state: 'positives\.rows' is float32 \(0, 4\)"):
        client.load(str(tmp_path), records)
    after = client.snapshot()(str(tmp_path / "after"))
    assert before == after
    for actor in (client.index, *client.stores):
        ray_cluster.kill(actor)


@pytest.mark.parametrize("shards", [1, 2])
def test_labels_and_centroids_by_the_loops_client(ray_cluster: Any, shards: int) -> None:
    """The client of one actor or of several, as a rank has it; both are those of the memory in a process."""
    from rayssl.runtime.memory.client import connect

    sizes = {**SETTINGS, "positive_dim": 1, "queue": 1, "neighbours": 0, "sampling": "label"}
    settings = MemorySettings(**{name: value for name, value in sizes.items() if name not in ("skip_empty", "whiten")})
    memory, client = UtteranceMemory(settings), connect(settings, MemoryConfig(threads=1, shards=shards), "labels")
    everyone = np.arange(settings.utterances)
    rows = np.random.default_rng(0).standard_normal((len(everyone), 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    try:
        what = RememberArrays(everyone, rows)
        memory.remember(what)
        assert client.exchange([what], None, 0).result(60) is None
        memory.refresh(0)
        client.refresh(0)
        found = client.exchange([], everyone, 0).result(60)
        assert found is not None and found.found.all()
        np.testing.assert_array_equal(found.rows, memory.recall(everyone, epoch=0).rows)
        np.testing.assert_array_equal(client.centroids(), memory.centroids())
    finally:
        for actor in client.actors:  # type: ignore[attr-defined]
            ray_cluster.kill(actor)

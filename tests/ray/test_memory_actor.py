"""The memory actor is `UtteranceMemory` fed in rank order, whatever the order in which the ranks call."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.errors import CheckpointError
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.training import pieces
from tests.runs import arrays_of

pytestmark = pytest.mark.ray

WORLD, BATCH, STEPS, EPOCHS = 2, 4, 8, 3
SETTINGS: dict[str, Any] = {
    "utterances": WORLD * BATCH * STEPS, "reference_dim": 6, "positive_dim": 5, "queue": 24, "clusters": 8,
    "neighbours": 1, "seed": 3, "threads": 1,
}  # fmt: skip


def ids(epoch: int, step: int, rank: int) -> np.ndarray:
    order = np.random.default_rng([1, epoch]).permutation(SETTINGS["utterances"])
    return order.reshape(STEPS, WORLD, BATCH)[step, rank]


def remembered(epoch: int, step: int, rank: int) -> RememberArrays:
    own = ids(epoch, step, rank)
    rng = np.random.default_rng([2, epoch, step, rank])
    centres = np.random.default_rng(9).normal(size=(8, 6))
    rows = centres[own % 8] + rng.normal(0, 0.3, (BATCH, 6))
    references = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    positives = rng.normal(size=(BATCH, 5)).astype(np.float32)
    return RememberArrays(own, references, positives, (own % 8).astype(np.int32), (own % 16).astype(np.int32))


def following(epoch: int, step: int, rank: int) -> np.ndarray | None:
    """The ids of the next batch, asked for together with what is remembered of this one."""
    return ids(epoch, step + 1, rank) if step + 1 < STEPS else None


def saved(ray: Any, actor: Any, folder: str) -> Any:
    """The records of what the actor writes."""
    ray.get(actor.snapshot.remote())
    return ray.get(actor.save.remote(folder))


def in_process() -> tuple[dict[Any, RecallArrays], list[dict[str, float]], dict[str, np.ndarray]]:
    memory = UtteranceMemory(MemorySettings(**SETTINGS))
    recalls, metrics = {}, []
    for epoch in range(EPOCHS):
        if epoch:
            memory.refresh(epoch)
        for step in range(STEPS):
            for rank in range(WORLD):
                memory.remember(remembered(epoch, step, rank))
            for rank in range(WORLD):
                wanted = following(epoch, step, rank)
                if wanted is not None:
                    recalls[epoch, step, rank] = memory.recall(wanted, epoch=epoch)
        metrics.append(memory.metrics())
    return recalls, metrics, memory.state_dict()


@pytest.fixture(scope="module")
def actors(ray_cluster: Any) -> Iterator[Any]:
    """Makes actors of `Server`, which end with the module."""
    from rayssl.runtime.memory.servers import Server

    made: list[Any] = []

    def make(sync: str) -> Any:
        kind = ray_cluster.remote(Server).options(num_cpus=0.1, max_concurrency=100)
        made.append(kind.remote(MemorySettings(**SETTINGS), WORLD, sync == "strict"))
        return made[-1]

    yield make
    for actor in made:
        ray_cluster.kill(actor)


def epoch_by_ranks(ray: Any, actor: Any, epoch: int) -> dict[Any, RecallArrays]:
    """One epoch by two threads, each as fast as a random walk lets it; each waits only for its own answers."""
    recalls: dict[Any, RecallArrays] = {}

    def run(rank: int) -> None:
        rng = np.random.default_rng([4, epoch, rank])
        for step in range(STEPS):
            time.sleep(rng.uniform(0, 0.02))
            call = epoch * STEPS + step + 1
            wanted = following(epoch, step, rank)
            answer = ray.get(
                actor.exchange.remote(call, rank, [remembered(epoch, step, rank)], wanted, epoch), timeout=30
            )
            if answer is not None:
                recalls[epoch, step, rank] = answer

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return recalls


@pytest.fixture(scope="module")
def trained(ray_cluster: Any, actors: Any) -> tuple[Any, dict[Any, RecallArrays], list[dict[str, float]]]:
    """A strict actor after all epochs, what it recalled, and its metrics."""
    actor = actors(sync="strict")
    recalls, metrics = {}, []
    for epoch in range(EPOCHS):
        if epoch:
            ray_cluster.get(actor.refresh.remote(epoch))
        recalls |= epoch_by_ranks(ray_cluster, actor, epoch)
        metrics.append(ray_cluster.get(actor.metrics.remote()))
    return actor, recalls, metrics


def test_strict_equals_the_memory_in_process(ray_cluster: Any, trained: Any, tmp_path: Path) -> None:
    actor, recalls, metrics = trained
    wanted, due, state = in_process()
    assert recalls.keys() == wanted.keys()
    for key, recall in wanted.items():
        for name in ("rows", "found", "ids"):
            assert np.array_equal(getattr(recalls[key], name), getattr(recall, name)), (key, name)
    assert sum(recall.found.sum() for recall in wanted.values()) > 20, "nothing was recalled: the test compares nothing"
    assert metrics == [{**figures, "staleness_steps": 0.0} for figures in due]
    found = arrays_of(str(tmp_path), saved(ray_cluster, actor, str(tmp_path)))
    assert found.keys() == state.keys()
    assert [name for name in state if not np.array_equal(found[name], state[name])] == []


def test_state_goes_to_another_actor_and_nobody_is_answered_before_every_rank_has_called(
    ray_cluster: Any, actors: Any, trained: Any, tmp_path: Path
) -> None:
    other, folder = actors(sync="strict"), str(tmp_path)
    records = saved(ray_cluster, trained[0], folder)
    ray_cluster.get(other.load.remote(folder, records))
    again = saved(ray_cluster, other, folder + "/again")
    assert again == records
    answers = []
    for actor in (trained[0], other):
        call = EPOCHS * STEPS + 1
        first = actor.exchange.remote(call, 1, [remembered(3, 0, 1)], ids(3, 0, 1), 2)
        assert ray_cluster.wait([first], timeout=0.5)[0] == []
        second = actor.exchange.remote(call, 0, [], None, 2)  # a rank with nothing to remember counts too
        assert ray_cluster.get(second, timeout=60) is None
        answers.append(ray_cluster.get(first, timeout=60))
    assert np.array_equal(answers[0].rows, answers[1].rows)
    assert answers[0].found.any()


def test_ahead_answers_at_once_and_counts_how_far_ranks_are_apart(ray_cluster: Any, actors: Any) -> None:
    actor = actors(sync="ahead")
    for step in range(3):  # rank 0 alone: 1, 2, 3 steps ahead
        ray_cluster.get(
            actor.exchange.remote(step + 1, 0, [remembered(0, step, 0)], ids(0, step + 1, 0), 0), timeout=10
        )
    assert ray_cluster.get(actor.metrics.remote())["staleness_steps"] == pytest.approx(2.0)
    ray_cluster.get([actor.exchange.remote(step + 1, 1, [remembered(0, step, 1)], None, 0) for step in range(3)])
    assert ray_cluster.get(actor.metrics.remote())["staleness_steps"] == pytest.approx(0.0)


def test_client_of_one_rank_and_a_state_that_does_not_fit(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime.memory.actor import ActorMemory

    client = ActorMemory(MemorySettings(**{**SETTINGS, "utterances": 64}), MemoryConfig(threads=1), "runs/x")
    answer = client.exchange([remembered(0, 0, 0)], ids(0, 1, 0), 0).result(timeout=60)
    assert answer is not None and not answer.found.any()
    assert client.metrics()["reference_fill"] == pytest.approx(BATCH / 64)
    records = pieces.write(str(tmp_path), UtteranceMemory(MemorySettings(**{**SETTINGS, "clusters": 9})).snapshot())
    with pytest.raises(ValueError, match=r"^memory state: 'clusters\.\w+' is .*, expected [^\n]*$"):
        client.load(str(tmp_path), records)
    records = pieces.write(str(tmp_path), UtteranceMemory(MemorySettings(**SETTINGS)).snapshot())
    (tmp_path / "memory-positives-0000000006.npz").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"^\S+/memory-positives-0000000006\.npz: damaged"):
        client.load(str(tmp_path), records)
    assert client.metrics()["reference_fill"] == pytest.approx(BATCH / 64)
    ray_cluster.kill(client.actor)

"""Reads a job's batches on this cluster as its training does, but without a network: one process for each rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayssl.experiment.job import Job, position
from rayssl.runtime import cluster, ingest
from rayssl.runtime.bench import processes
from rayssl.runtime.bench.consumer import Consumed, take
from rayssl.runtime.bench.processes import Key, Seconds
from rayssl.runtime.memory.rounds import get
from rayssl.views.packed import Packed

_STREAM = "train"
_CLOSE_S = 10.0


class RaySupply:
    """The batches of ``job`` by way of Ray Data; ``ray.workers`` consumers take them. Call `cluster.connect` before.

    ``readers``: the number of data tasks at once.
    ``device``: where the batches come to.
    """

    name = "rayssl"

    def __init__(self, job: Job) -> None:
        ranks = job.experiment.ray.most
        self._job, self._ranks = job, ranks
        self.readers = ingest.reader_count(job)
        gpus = int(ray.cluster_resources().get("GPU", 0.0) >= ranks)
        self.device = "cuda" if gpus else "cpu"
        kind = ray.remote(_Consumer).options(num_cpus=job.experiment.ray.cpus_per_worker, num_gpus=gpus)
        self._consumers = [kind.remote(rank, self.device) for rank in range(ranks)]
        self._nodes = get([consumer.node.remote() for consumer in self._consumers])
        self._meters = [] if not cluster.joins() else _meters()
        self._splitters: list[Any] = []

    @property
    def burst(self) -> int:
        """The number of steps whose batches come at about the same time: those of one unit for each reader."""
        return self.readers * self._job.own.unit_steps(self._job.experiment.corpus.unit_rows)

    def open(self) -> float:
        """Starts the reading. Returns after how many seconds every rank had its first batch."""
        experiment = self._job.experiment
        corpus = experiment.corpus.model_copy(update={"readers": self.readers})
        job = replace(self._job, experiment=experiment.model_copy(update={"corpus": corpus}))
        began = time.perf_counter()
        datasets, config = ingest.for_train(job, position(job), experiment.training.epochs)
        made = {name: dataset() for name, dataset in datasets.items()}
        found = config.configure(made, self._ranks, None, self._nodes)
        self._splitters = [found[0][_STREAM]._coord_actor]
        get([consumer.open.remote(of[_STREAM]) for consumer, of in zip(self._consumers, found, strict=True)])
        return time.perf_counter() - began

    def take(self, steps: int, pause_s: float = 0.0) -> list[Consumed]:
        """What each rank needed for the next ``steps``, see `rayssl.runtime.bench.consumer.take`."""
        return get([consumer.take.remote(steps, pause_s) for consumer in self._consumers])  # type: ignore[no-any-return]

    def cpu(self) -> Seconds:
        """The CPU seconds of all processes so far. On a cluster that was joined, also those of other jobs there."""
        found = processes.seconds(processes.own(), "driver")
        for each in get([meter.seconds.remote() for meter in self._meters]):
            found |= each
        return found

    def kind(self, key: Key, title: str) -> str:
        """``tasks`` (those that read), ``splitter``, ``consumer``, or ``rest``: the driver and Ray itself."""
        if title.startswith("ray::_Consumer"):
            return "consumer"
        if title.startswith("ray::SplitCoordinator"):
            return "splitter"
        if title.startswith("ray::IDLE") or (title.startswith("ray::") and "(" in title):
            return "tasks"
        return "rest"

    def shipped(self) -> tuple[float, float]:
        """The bytes of an utterance that came to a rank: those of its samples, and all."""
        counted = get([consumer.shipped.remote() for consumer in self._consumers])
        rows, samples, everything = (sum(column) for column in zip(*counted, strict=True))
        return samples / rows, everything / rows

    def close(self) -> None:
        """Ends the reading. Without this, Ray Data would go on to list units on a cluster that stays."""
        with suppress(Exception):
            ray.get([splitter.shutdown_executor.remote() for splitter in self._splitters], timeout=_CLOSE_S)
        for actor in (*self._splitters, *self._consumers, *self._meters):
            ray.kill(actor)
        self._splitters, self._consumers, self._meters = [], [], []


def _meters() -> list[Any]:
    """An actor on each node."""
    kind = ray.remote(_Meter)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    where = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return [kind.options(num_cpus=0, scheduling_strategy=each).remote() for each in where]


class _Meter:
    """Reads the CPU seconds of Ray's processes on its node."""

    def seconds(self) -> Seconds:
        return processes.seconds(processes.of_raylet(), ray.get_runtime_context().get_node_id())


class _Consumer:
    """The process of one rank: it takes batches as a training worker does."""

    def __init__(self, rank: int, device: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._rank, self._device = rank, torch.device(device)
        self._rows = self._sample_bytes = self._bytes = 0
        self._batches: Iterator[dict[str, Any]] = iter(())

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()  # type: ignore[no-any-return]

    def open(self, iterator: Any) -> None:
        from rayssl.training.feed import placed

        self._batches = placed(self._counted(ingest.packed(iterator, self._rank)), self._device)
        self.take(1)

    def take(self, steps: int, pause_s: float = 0.0) -> Consumed:
        return take(self._batches, steps, pause_s)

    def shipped(self) -> tuple[int, int, int]:
        """Utterances, bytes of samples, and all bytes so far."""
        return self._rows, self._sample_bytes, self._bytes

    def _counted(self, rows: Iterator[Packed]) -> Iterator[Packed]:
        for row in rows:
            self._rows += len(row.ends)
            self._sample_bytes += row.pcm.nbytes
            self._bytes += sum(part.nbytes for part in (*row.columns.values(), row.pcm, row.ends, row.starts))
            yield row

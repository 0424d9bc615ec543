"""Reads a job's batches with PyTorch's DataLoader instead of Ray, to compare with: the same units, the same segments.

Each worker process reads every n-th unit of the plan, decodes and cuts it with the functions that data tasks use, and
sends collated batches through shared memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rayssl.batches.plan import Cursor
from rayssl.experiment.job import Job
from rayssl.runtime import cluster
from rayssl.runtime.bench import processes
from rayssl.runtime.bench.consumer import Consumed, take
from rayssl.runtime.bench.processes import Key, Seconds
from rayssl.views import reading

_PREFETCH = 2  # batches of each worker, PyTorch's default


class UnitBatches(IterableDataset[dict[str, Any]]):
    """The batches of a job for one rank; a worker of a DataLoader has those of every n-th unit."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        job, settings = self._job, self._job.read_settings("train", 1)
        units = job.units("train", Cursor(), job.experiment.training.epochs, 1)()
        for unit in islice(units, first, None, workers):
            segments = job.segments_of("train", unit.epoch)
            for packed in reading.read(unit, settings, segments):
                for batch in packed.batches():
                    yield {key: _tensor(value) for key, value in batch.items()}


class LoaderSupply:
    """The batches of ``job`` by way of a DataLoader with ``workers`` processes; this process takes them.

    ``started``: how the processes start. A fork is quicker, but not possible in a process with Ray's threads or those
    of an object store.
    """

    name = "DataLoader"
    device = "cpu"

    def __init__(self, job: Job, workers: int) -> None:
        self._job, self.readers = job, workers
        safe = not cluster.started() and "://" not in job.experiment.corpus.uri
        self.started = "fork" if safe else "spawn"
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        self._batches: Iterator[dict[str, Any]] = iter(())

    @property
    def burst(self) -> int:
        """The number of steps whose batches come at about the same time: those of one unit for each worker."""
        return self.readers * self._job.own.unit_steps(self._job.experiment.corpus.unit_rows)

    def open(self) -> float:
        """Starts the reading. Returns after how many seconds the first batch was there."""
        began = time.perf_counter()
        loader = DataLoader(
            UnitBatches(self._job),
            batch_size=None,
            num_workers=self.readers,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
            multiprocessing_context=self.started,
        )
        self._batches = iter(loader)
        take(self._batches, 1)
        return time.perf_counter() - began

    def take(self, steps: int, pause_s: float = 0.0) -> list[Consumed]:
        """See `rayssl.runtime.bench.consumer.take`."""
        return [take(self._batches, steps, pause_s)]

    def cpu(self) -> Seconds:
        """The CPU seconds of this process and of the workers so far."""
        return processes.seconds(process for process in processes.own() if process.pid not in self._before)

    def kind(self, key: Key, title: str) -> str:
        """``consumer``, which is this process, or ``tasks``."""
        return "consumer" if key[1] == psutil.Process().pid else "tasks"

    def close(self) -> None:
        """Ends the workers."""
        self._batches = iter(())  # the loader's iterator ends its processes when it is collected


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if hasattr(value, "dtype") else value

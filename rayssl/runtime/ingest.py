"""Ray Data streams shards from object storage to the ranks: one task reads, decodes and cuts a unit of an epoch.

A row of the dataset is a whole batch of one rank, in its own block. The order is preserved, and the splitter gives the
ranks one block each in turn. So rank `r` gets batch `r` of every step, and `rayssl.batches.plan` alone decides what a
rank sees. Each row names its rank and step: if the splitter did something else, `batches` would raise at once. All
remaining epochs are one dataset. There is no barrier at an epoch's end, and the next epoch is read while this one
trains.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data import DataContext

from rayssl import errors
from rayssl.batches.plan import Cursor, ReadUnit, ShardRange
from rayssl.views import reading

if TYPE_CHECKING:  # a data task imports this module and must start without torch
    from rayssl.experiment.job import Job

_AHEAD = 2  # the number of batches that a rank fetches in advance


def dataset(job: Job, name: str, *, start: Cursor, epoch_count: int) -> ray.data.Dataset:
    """The batches of the job's stream ``name`` from ``start`` to the end of epoch ``epoch_count``.

    It is a lazy dataset, to be split over the ranks. The executor must preserve the order (Ray Train takes this from
    its DataConfig). At most ``corpus.readers`` tasks (0: as many as ranks) read at once. RAM is bounded: a task holds
    one unit, finished batches wait in the object store, and Ray Data starts no task when their share of it is full.
    """
    context = DataContext.get_current()
    context.target_max_block_size = 1  # each row becomes its own block, see above
    # If bars are disabled, Ray Data prints that they are. As log lines they are below the level of cluster.connect.
    context.enable_progress_bars, context.use_ray_tqdm = True, False
    # every 30 s they would print many lines that advise to reserve memory for the task that lists the units
    context.issue_detectors_config.detectors = []
    context.custom_execution_callback_classes = [_SchedulerThrottle]
    config = job.experiment
    pool = ray.data.TaskPoolStrategy(size=config.corpus.readers or config.ray.workers)
    # If all units were listed first, each would cost a block before anything is read: 100 epochs of VoxCeleb2 have
    # 100,000 units, and 10,000 took over a minute. This task lists units only as fast as the readers take them.
    whole = ray.data.from_items([{"whole": True}])
    units = whole.map_batches(_Planner(job, name, start, epoch_count), batch_size=1, num_cpus=0.01)
    return units.map_batches(_Reader(job, name), batch_size=1, num_cpus=0.5, compute=pool)


def batches(iterator: ray.data.DataIterator, rank: int) -> Iterator[dict[str, Any]]:
    """This rank's batches, as `rayssl.views.reading.read` makes them.

    If a data task could not make a batch, its `UserError` is raised here.
    """
    for row in iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_AHEAD):
        raw = {name: column[0] for name, column in row.items()}
        if "error" in raw:
            raise getattr(errors, str(raw["error"]))(str(raw["message"]))
        for name in ("epoch", "step", "rank"):
            raw[name] = int(raw[name])
        raw["fill"] = bool(raw["fill"])
        if raw["rank"] != rank:
            raise RuntimeError(
                f"the batch of rank {raw['rank']} (epoch {raw['epoch']}, step {raw['step']}) came to {rank}"
            )
        yield raw


class _SchedulerThrottle:
    """Adds a pause to each turn of Ray Data's scheduling loop.

    While finished batches wait for the ranks, the loop runs without a pause and takes a third of a core from training.
    Fewer turns are enough, since each batch is requested well before its step.
    """

    def on_execution_step(self, executor: object) -> None:
        """Waits. Ray Data calls this after each turn."""
        time.sleep(0.02)

    def before_execution_starts(self, executor: object) -> None:
        """Does nothing."""

    def after_execution_succeeds(self, executor: object) -> None:
        """Does nothing."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Does nothing."""


class _Planner:
    """The task that lists the units: in order, one in each block, and only when the readers take them."""

    def __init__(self, job: Job, name: str, start: Cursor, epoch_count: int) -> None:
        experiment = job.experiment
        self.manifest, self.stream = job.manifest, job.streams[name]
        self.how: dict[str, Any] = {
            "seed": experiment.seed,
            "unit_rows": experiment.corpus.unit_rows,
            "fills": job.fills(name),
        }
        self.how |= {"start": start, "epoch_count": epoch_count}

    def __call__(self, _: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for unit in self.stream.units(self.manifest, **self.how):
            yield {"unit": [json.dumps(asdict(unit))]}


class _Reader:
    """What a data task runs. It is pickled once with the dataset.

    It holds only what reading needs: with the settings of a method or an encoder, the task would import torch.
    """

    def __init__(self, job: Job, name: str) -> None:
        experiment = job.experiment
        self.manifest, self.uri, self.stream = job.manifest, experiment.corpus.uri, job.streams[name]
        self.seed, self.ranks = experiment.seed, experiment.ray.workers
        plan = job.segments
        self.segments = (plan.labelled,) if name == "labelled" else plan.own
        self.fill_segments = () if name == "labelled" else plan.fill

    def __call__(self, items: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for text in items["unit"]:
            fields = json.loads(str(text))
            unit = ReadUnit(**{**fields, "pieces": tuple(ShardRange(**piece) for piece in fields["pieces"])})
            done = 0
            try:
                for row in self._read(unit):
                    done += 1
                    yield {name: np.asarray(value)[None] for name, value in row.items()}
            except errors.UserError as error:
                # The error becomes a row in place of each missing batch, so that every rank gets one. An exception
                # would print the traceback of every process on its way.
                failed = {"error": np.asarray([type(error).__name__]), "message": np.asarray([str(error)])}
                yield from [failed] * (unit.steps * self.ranks - done)

    def _read(self, unit: ReadUnit) -> Iterator[dict[str, Any]]:
        return reading.read(
            unit,
            self.uri,
            self.manifest,
            seed=self.seed,
            batch=self.stream.batch,
            ranks=self.ranks,
            segments=(self.fill_segments if unit.fill else self.segments)[0 if self.stream.cycles else unit.epoch],
            selection=self.stream.selection,
        )

"""Ray Data streams shards from object storage to the ranks: one task reads, decodes and cuts a unit of an epoch.

A row of the dataset is a whole batch of one rank, in a block of its own. With the order preserved the splitter deals
blocks in turn, so rank `r` gets batch `r` of every step: what a rank sees is decided by `rayssl.batches.plan` alone,
and each row says for which rank and step it was made, so that a splitter that dealt otherwise would be noticed at
once. All remaining epochs are one dataset: no barrier at an epoch's end, and the next epoch is read while this one
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

if TYPE_CHECKING:  # a data task imports this module, and shall start without torch
    from rayssl.experiment.job import Job

_AHEAD = 2  # batches that a rank holds before it needs them


def dataset(job: Job, name: str, *, start: Cursor, epoch_count: int) -> ray.data.Dataset:
    """The batches of the job's stream ``name`` from ``start`` to the end of epoch ``epoch_count``: a lazy dataset, to
    be split over the ranks.

    The executor must preserve the order (Ray Train takes that from its DataConfig). At most ``corpus.readers`` tasks
    (0: as many as ranks) read at once. Memory stays bounded: a task holds one unit, finished batches wait in the object
    store, and Ray Data starts no task when their share of it is full.
    """
    context = DataContext.get_current()
    context.target_max_block_size = 1  # every row its own block, see above
    # Without bars Ray Data would say that there are none; as log lines they are below the level of cluster.connect.
    context.enable_progress_bars, context.use_ray_tqdm = True, False
    # they advise, every 30 s and by many lines, to reserve memory for the task that lists the units
    context.issue_detectors_config.detectors = []
    context.custom_execution_callback_classes = [_SchedulerThrottle]
    config = job.experiment
    pool = ray.data.TaskPoolStrategy(size=config.corpus.readers or config.ray.workers)
    # A plan made beforehand would cost a block for each unit before anything is read: 100 epochs of VoxCeleb2 have
    # 100,000, and 10,000 took over a minute. This task goes no further ahead than its readers let it.
    whole = ray.data.from_items([{"whole": True}])
    units = whole.map_batches(_Planner(job, name, start, epoch_count), batch_size=1, num_cpus=0.01)
    return units.map_batches(_Reader(job, name), batch_size=1, num_cpus=0.5, compute=pool)


def batches(iterator: ray.data.DataIterator, rank: int) -> Iterator[dict[str, Any]]:
    """This rank's batches, as `rayssl.views.reading.read` makes them; raises the `UserError` that one could not be."""
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
    """A pause in each turn of Ray Data's scheduling loop.

    While finished batches wait for ranks to take them, the loop turns without one, and takes a core's third from
    training. No turn is needed more often: a batch is asked for well before its step.
    """

    def on_execution_step(self, executor: object) -> None:
        """After each turn."""
        time.sleep(0.02)

    def before_execution_starts(self, executor: object) -> None:
        """Nothing."""

    def after_execution_succeeds(self, executor: object) -> None:
        """Nothing."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Nothing."""


class _Planner:
    """The task that lists the units, in order and one a block, as they are asked for."""

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
    """What a data task runs; pickled once with the dataset. It takes along what reading needs, and no more: settings
    of a method or encoder would bring torch into the task.
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
                # As values, one in place of each missing batch so that every rank gets its own: an exception would
                # fill the terminal with the tracebacks of every process that it passes.
                told = {"error": np.asarray([type(error).__name__]), "message": np.asarray([str(error)])}
                yield from [told] * (unit.steps * self.ranks - done)

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

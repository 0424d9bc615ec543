"""Ray Data streams shards from object storage to the ranks: one task reads, decodes and packs a unit of an epoch.

A row of the dataset holds a few batches of one rank (`rayssl.views.packed`), in its own block. The order is preserved,
and the splitter gives the ranks one block each in turn. So `rayssl.batches.plan` alone decides what a rank sees. Each
row names its rank and steps: if the splitter did something else, `packed` would raise at once. All remaining epochs
are one dataset. There is no barrier at an epoch's end, and the next epoch is read while this one trains.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayssl import errors
from rayssl.batches.order import ShardRange
from rayssl.batches.plan import Cursor, ReadUnit, parts_of
from rayssl.training.ahead import ReadAhead
from rayssl.views import reading
from rayssl.views.packed import Packed

if TYPE_CHECKING:
    import ray.data  # not at run time: before `cluster.connect`, importing ray would fix how it authenticates

    from rayssl.experiment.job import Job  # a data task imports this module and must start without torch

_AHEAD = 2  # the number of blocks that a rank fetches in advance
_LEAST_BYTES = 256 << 20  # read ahead for each rank at least, if the object store has room
_STORE_SHARE = 0.4  # of the object store, the most that may be read ahead
_READERS_SHARE = 0.5  # of the limit; Ray Data keeps the rest for the task that lists units, which needs nothing
_PAUSE_S = 0.01
_LEAST_SPARE = 2  # the fewest tasks beyond `readers`, see `tasks_at_once`


class Placement:
    """Puts data tasks on the nodes of the ranks that they serve, in turn. ``nodes``: that of each rank.

    Ray Data calls it before each task, in the order of units. A wrong turn after a task's failure costs a copy between
    nodes and nothing else.
    """

    def __init__(self, nodes: Sequence[str], lanes: int) -> None:
        served = [nodes[lane * len(nodes) // lanes] for lane in range(lanes)]
        self.nodes = served if lanes > 1 else list(dict.fromkeys(nodes))  # with one lane a task serves all ranks
        self._calls = 0

    def __call__(self) -> dict[str, Any]:
        """Ray's arguments for the next task."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self.nodes[self._calls % len(self.nodes)]
        self._calls += 1
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}


def reader_count(job: Job) -> int:
    """The number of data tasks that may run at once. Call it on the driver, before the workers start.

    ``auto``: the cores that neither the ranks nor the memory's actors take, less one for Ray Data itself, and at least
    one for each rank.
    """
    import ray

    from rayssl.runtime import cluster

    config = job.experiment
    if config.corpus.readers != "auto":
        return config.corpus.readers
    held = config.ray.most * config.ray.cpus_per_worker + config.memory.actors * config.memory.cpus
    free = ray.available_resources().get("CPU", 0.0) - held
    if not cluster.joins():  # a local cluster has more logical CPUs than cores, see `cluster.connect`
        free -= max(0.0, ray.cluster_resources().get("CPU", 0.0) - (os.cpu_count() or 1))
    return max(config.ray.most, int(free) - 1)


def tasks_at_once(readers: int) -> int:
    """How many data tasks run or have just ended, so that ``readers`` cores always read.

    Ray Data looks ten times a second for tasks that have ended, and starts the next ones then. A task may take a third
    of a second: with one spare task two cores were idle for a tenth of their time.
    """
    return readers + max(_LEAST_SPARE, readers // 2)


def ahead_bytes(job: Job, name: str, readers: int) -> float:
    """The most bytes of finished blocks of the stream ``name`` in the object store: a unit for each reader and more."""
    import ray

    stream, ranks = job.streams[name], job.experiment.ray.most
    segments = max((job.segments_of(name, epoch) for epoch in range(job.experiment.training.epochs)), key=_seconds)
    rows = stream.unit_steps(job.experiment.corpus.unit_rows) * stream.batch * stream.length
    unit_bytes = rows * reading.utterance_bytes(job.manifest, segments)
    wanted = (tasks_at_once(readers) + _AHEAD + 1) * unit_bytes / _READERS_SHARE
    share = _STORE_SHARE * ray.cluster_resources().get("object_store_memory", 0.0) / len(job.streams)
    return float(max(_LEAST_BYTES, min(max(wanted, _LEAST_BYTES * ranks), share)))


def dataset(
    job: Job,
    name: str,
    *,
    start: Cursor,
    epoch_count: int,
    readers: int = 1,
    placement: Placement | None = None,
) -> ray.data.Dataset:
    """The batches of the job's stream ``name`` from ``start`` to the end of epoch ``epoch_count``.

    It is a lazy dataset, to be split over the ranks. The executor must preserve the order (Ray Train takes this from
    its DataConfig). ``readers`` cores read, see `tasks_at_once`. RAM is bounded: a task holds the encoded audio of one
    unit and one block, finished blocks wait in the object store, and Ray Data starts no task when their share of it is
    full.
    """
    return _read(_Planner(job, name, start, epoch_count), _Reader(job, name), readers, placement)


def _read(planner: _Planner, reader: _Reader, readers: int, placement: Placement | None) -> ray.data.Dataset:
    """See `dataset`. Needs no job: where it is called by a process of Ray, the job would bring torch there."""
    import ray.data
    from ray.data import DataContext
    from ray.data._internal.execution.backpressure_policy import (
        ENABLED_BACKPRESSURE_POLICIES,
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    )

    tasks = tasks_at_once(readers)
    context = DataContext.get_current()
    context.target_max_block_size = 1  # each row becomes its own block, see above
    # If bars are disabled, Ray Data prints that they are. As log lines they are below the level of cluster.connect.
    context.enable_progress_bars, context.use_ray_tqdm = True, False
    # every 30 s they would print many lines that advise to reserve memory for the task that lists the units
    context.issue_detectors_config.detectors = []
    context.custom_execution_callback_classes = [_SchedulerThrottle]
    policies = [*ENABLED_BACKPRESSURE_POLICIES, _units_ahead(2 * tasks)]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    # If all units were listed first, each would cost a block before anything is read: 100 epochs of VoxCeleb2 have
    # 100,000 units, and 10,000 took over a minute. This task lists units only as fast as the readers take them.
    whole = ray.data.from_items([{"whole": True}])
    units = whole.map_batches(planner, batch_size=1, num_cpus=0.01)
    cpus = round(0.5 * (readers + 1) / tasks, 3)  # together a little more than half a CPU for each reader
    how: dict[str, Any] = {"batch_size": 1, "num_cpus": cpus, "compute": ray.data.TaskPoolStrategy(size=tasks)}
    if placement is not None:
        how["ray_remote_args_fn"] = placement
    with warnings.catch_warnings():
        # Ray 2.64 will remove this argument; until then nothing else places a task of Ray Data that preserves the order
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=DeprecationWarning)
        return units.map_batches(reader, **how)


def for_train(job: Job, start: Cursor, until: int) -> tuple[dict[str, Callable[[], ray.data.Dataset]], Any]:
    """The datasets of a TorchTrainer, by stream, and its DataConfig: from ``start`` to the end of epoch ``until``.

    Ray Train ignores options of the datasets. It makes them in two processes of its own, which need no torch for it.
    """
    from ray.data import ExecutionOptions
    from ray.train import DataConfig

    readers, ranks = reader_count(job), job.experiment.ray.most
    parts = {name: (_Planner(job, name, start, until), _Reader(job, name)) for name in job.streams}
    lanes = {name: math.gcd(parts_of(stream.batch), ranks) for name, stream in job.streams.items()}
    options = {}
    for name in job.streams:
        options[name] = ExecutionOptions(preserve_order=True)
        # without a limit Ray Data reads epochs in advance, and its tasks take cores from the training
        limits = options[name].resource_limits.copy(object_store_memory=ahead_bytes(job, name, readers))
        options[name].resource_limits = limits

    def made(name: str, nodes: Sequence[str] = ()) -> ray.data.Dataset:
        return _read(*parts[name], readers, Placement(nodes, lanes[name]) if nodes else None)

    class Placed(DataConfig):  # type: ignore[misc]
        """Knows where the ranks are. If they are on several nodes, data tasks run there too."""

        def configure(self, datasets: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            nodes = kwargs.get("worker_node_ids") or []
            if len(set(nodes)) > 1:
                datasets = {name: made(name, nodes) for name in datasets}
            return super().configure(datasets, *args, **kwargs)

    return {name: partial(made, name) for name in job.streams}, Placed(execution_options=options)


def packed(iterator: ray.data.DataIterator, rank: int) -> Iterator[Packed]:
    """This rank's batches, packed as `rayssl.views.reading.read` makes them; views of the object store.

    If a data task could not make a block, its `UserError` is raised here.
    """
    for table in iterator.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_AHEAD):
        if "error" in table.column_names:
            kind, message = (table.column(name)[0].as_py() for name in ("error", "message"))
            raise getattr(errors, kind)(message)
        found = Packed.of(table)
        if found.rank != rank:
            where = f"epoch {found.epoch}, step {found.first_step}"
            raise RuntimeError(f"the batch of rank {found.rank} ({where}) came to {rank}")
        yield found


def begun(rows: Iterator[Packed]) -> Iterator[Packed]:
    """``rows``, of which the first is asked for at once: Ray Data starts its processes then.

    The thread is never joined. It may wait for Ray, and must not keep a rank that has failed.
    """
    return ReadAhead(rows, 1, "rayssl-blocks").begin()


class _SchedulerThrottle:
    """Adds a pause to each turn of Ray Data's scheduling loop.

    While finished blocks wait for the ranks, the loop runs without a pause and takes a third of a core from training.
    Fewer turns are enough: a turn takes all blocks that are finished, and each is requested well before its step.
    """

    def on_execution_step(self, executor: object) -> None:
        """Waits. Ray Data calls this after each turn."""
        time.sleep(_PAUSE_S)

    def before_execution_starts(self, executor: object) -> None:
        """In the process of the loop: a short training has fewer units than tasks, and Ray Data would warn of that."""
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")

    def after_execution_succeeds(self, executor: object) -> None:
        """Does nothing."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Does nothing."""


def _units_ahead(most: int) -> type:
    """A policy of Ray Data: the task that lists units waits while ``most`` of them wait for a reader.

    Units are small, so Ray Data's own policies, which count bytes, would let it list all epochs at once. That takes
    the splitter 5 ms a unit, when the first batches are waited for.
    """

    class UnitsAhead:
        name = "UnitsAhead"

        def __init__(self, _context: object, topology: Any, _manager: object) -> None:
            self._topology = topology

        def can_add_input(self, _operator: object) -> bool:
            return True

        def max_task_output_bytes_to_read(self, operator: Any) -> int | None:
            """0 to wait; None for no limit."""
            if _Planner.__name__ not in operator.name or not operator.output_dependencies:
                return None
            reader = self._topology[operator.output_dependencies[0]]
            return 0 if reader.total_enqueued_input_blocks() >= most else None

    return UnitsAhead


class _Planner:
    """The task that lists the units: in order, one in each block, and only when the readers take them.

    If a file that it needs has been damaged since the job began, the user's error stands in place of the next unit.
    """

    def __init__(self, job: Job, name: str, start: Cursor, epoch_count: int) -> None:
        self.units = job.units(name, start, epoch_count, job.experiment.ray.most)

    def __call__(self, _: Any) -> Iterator[dict[str, Any]]:
        try:
            for unit in self.units():
                yield {"unit": [_written(unit)]}
        except errors.UserError as error:
            yield {"unit": [json.dumps({"error": type(error).__name__, "message": str(error)})]}


class _Reader:
    """What a data task runs. It is pickled once with the dataset.

    It holds only what reading needs: with the settings of a method or an encoder, the task would import torch.
    """

    def __init__(self, job: Job, name: str) -> None:
        self.settings = job.read_settings(name, job.experiment.ray.most)
        self.segments_of = partial(job.segments.of_unit, name, cycles=job.own.cycles)

    def __call__(self, items: dict[str, Any]) -> Iterator[pa.Table]:
        for text in map(str, items["unit"]):
            unit = _unit(text)
            if unit is None:
                for _ in range(self.settings.ranks):
                    yield pa.table({name: [value] for name, value in json.loads(text).items()})
                continue
            segments = self.segments_of(unit.epoch, fill=unit.fill)
            done = 0
            try:
                for made in reading.read(unit, self.settings, segments):
                    yield made.table()
                    done += 1
            except errors.UserError as error:
                # The error becomes a row in place of each missing block, so that every rank gets one. An exception
                # would print the traceback of every process on its way.
                failed = pa.table({"error": [type(error).__name__], "message": [str(error)]})
                blocks = -(-unit.steps // reading.block_steps(unit, self.settings, segments))
                for _ in range(blocks * self.settings.ranks // unit.lanes - done):
                    yield failed


def _written(unit: ReadUnit) -> str:
    fields = asdict(unit)
    fields["pools"] = [[(p.shard, p.start, p.stop, p.lap) for p in pool] for pool in unit.pools]
    return json.dumps(fields)


def _unit(text: str) -> ReadUnit | None:
    """What `_written` wrote. None if `_Planner` wrote an error."""
    fields = json.loads(text)
    if "error" in fields:
        return None
    pools = tuple(tuple(ShardRange(*piece) for piece in pool) for pool in fields.pop("pools"))
    return ReadUnit(pools=pools, **fields)


def _seconds(segments: Sequence[Any]) -> float:
    return float(sum(segment.seconds for segment in segments))

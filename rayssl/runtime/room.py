"""Room on the cluster for a run's workers: how many start now, and whether there is room for more later.

It asks Ray for a placement group of what the workers and the memory's actors need, and gives it back as soon as Ray has
made it. So it counts what Ray counts: other jobs, nodes that are leaving, labels. While the group waits, an autoscaler
sees what is wanted and adds nodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.runtime.placement import asked, give_back, made

_TURN_S = 1.0
_SETTLE_S = 5.0  # how long it waits for the largest number of workers before it takes fewer
_TRY_S = 2.0  # how long it asks for each smaller number
_TELL_S = 60.0
_GROW_AFTER_S = 30.0  # a run that has just started is left alone

Bundle = dict[str, float]


def worker_bundle(experiment: Experiment, gpu: bool) -> Bundle:
    """What Ray reserves for one worker."""
    return {"CPU": experiment.ray.cpus_per_worker, **({"GPU": 1.0} if gpu else {})}


def actor_bundles(experiment: Experiment, actors: bool) -> list[Bundle]:
    """What Ray reserves for each actor of the memory; empty for a run without one (``actors`` False)."""
    memory = experiment.memory
    if not actors:
        return []
    one = {"CPU": memory.cpus, "memory": float(memory.memory_bytes), "GPU": memory.gpus}
    wanted = {name: amount for name, amount in one.items() if amount > 0}
    index = [{"CPU": memory.cpus}] if memory.shards > 1 and memory.cpus > 0 else []
    return index + [wanted] * memory.shards if wanted else index


def find(
    experiment: Experiment, gpu: bool, actors: bool, say: Callable[[str], None], timeout_s: float = math.inf
) -> int:
    """The number of workers to start now: the largest of `Experiment.worker_counts` for which there is room.

    It waits some seconds for the largest, then it takes fewer. While there is room for none it waits, and ``say`` takes
    a line a minute. Raises `ConfigError` after ``timeout_s``.
    """
    counts = experiment.worker_counts
    worker, others = worker_bundle(experiment, gpu), actor_bundles(experiment, actors)
    began = told = time.monotonic()
    with asked([worker] * counts[0] + others) as most:
        while True:
            if made(most, _TURN_S):
                return counts[0]
            waited = time.monotonic() - began
            for count in counts[1:] if waited >= _SETTLE_S else ():
                with asked([worker] * count + others) as fewer:
                    if made(fewer, _TRY_S):
                        return count
            if waited >= timeout_s:
                text = f"no room for {_wanted(counts, worker, others)}; {_has()}"
                more = "set it higher, add nodes, or lower ray.workers"
                raise ConfigError(f"ray.start_timeout_s={timeout_s:g}: {text}; {more}")
            if time.monotonic() - told >= _TELL_S:
                told = time.monotonic()
                say(f"waits for room for {_wanted(counts, worker, others)}; {_has()}; {waited:.0f} s so far")


class Growth:
    """Looks whether there is room for more workers than the ``count`` that train now. A context."""

    def __init__(self, experiment: Experiment, gpu: bool, count: int) -> None:
        larger = [each for each in experiment.worker_counts if each > count]
        self._wanted = sorted({larger[0], larger[-1]}) if larger else []  # the most, for the autoscaler, and one step
        self._worker, self._count = worker_bundle(experiment, gpu), count
        self._began = time.monotonic()
        self._groups: list[Any] = []

    def __enter__(self) -> Growth:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    def __call__(self) -> str | None:
        """Why the run should leave now to start again with more workers, or None."""
        from ray.util.placement_group import placement_group, placement_group_table

        if not self._wanted or time.monotonic() - self._began < _GROW_AFTER_S:
            return None
        if not self._groups:
            self._groups = [placement_group([self._worker] * (each - self._count)) for each in self._wanted]
        if all(placement_group_table(group).get("state") != "CREATED" for group in self._groups):
            return None
        self._forget()
        self._wanted = []
        return "there is room for more workers"

    def _forget(self) -> None:
        import ray

        groups, self._groups = self._groups, []
        if ray.is_initialized():
            for group in groups:
                give_back(group)


def _wanted(counts: Sequence[int], worker: Bundle, others: Sequence[Bundle]) -> str:
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[-1]} to {counts[0]}"
    text = f"{number} workers of {_said(worker)} (ray.workers)"
    return f"{text} and {len(others)} actors of the memory of {_said(others[-1])}" if others else text


def _has() -> str:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    total, free = ray.cluster_resources(), ray.available_resources()
    names = [name for name in ("CPU", "GPU") if total.get(name)]
    parts = ", ".join(f"{free.get(name, 0.0):g} of {total[name]:g} {name} free" for name in names)
    return f"the cluster has {len(nodes)} nodes, {parts or 'no CPU'}"


def _said(bundle: Bundle) -> str:
    sizes = {
        name: f"{amount / 2**30:.1f} GiB" if name == "memory" else f"{amount:g}" for name, amount in bundle.items()
    }
    return " and ".join(f"{size} {name}" for name, size in sizes.items())

"""Measures what a memory of a job's size costs on this cluster: filling, exchanges, clustering, save and restore."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import ray

from rayssl import storage
from rayssl.clustering.points import unit_rows
from rayssl.errors import UserError
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.joining import joined
from rayssl.memory.utterances.settings import MemorySettings, bytes_needed
from rayssl.runtime.memory import relay
from rayssl.runtime.memory.actor import options
from rayssl.runtime.memory.asking import snapshot_of
from rayssl.runtime.memory.relay import Part
from rayssl.runtime.memory.rounds import get
from rayssl.runtime.memory.sending import Exchanger, Sender
from rayssl.runtime.memory.servers import Server
from rayssl.runtime.memory.sharded import start
from rayssl.training.pieces import Records

_POOL, _NOISE = 65521, 4093  # each row is the sum of one of each; the numbers are coprime, so that no sum comes twice
_PROCESSES = 16  # of ranks: each takes 250 MB
_FILL = 4096  # rows of one call in the pass that fills the memory
Figures = dict[str, int | float | str | bool]


@dataclass(frozen=True)
class MemoryCase:
    """The size of the memory to measure.

    ``rows``: N utterances, all of them in the queue. ``dim``: of references and of positives. ``batch``: of all ranks
    together. ``clusters``: K (0: N/40). ``calls``: exchanges of each rank, of ``ahead`` steps each. ``into``: a folder
    for the saved state (empty: a temporary one). ``relays``: as if the ranks were on so many nodes, each of which makes
    one call of those of its ranks (0: each rank makes its own). Raises `UserError` for a job that is not possible.
    """

    rows: int
    dim: int
    batch: int = 256
    ranks: int = 2
    shards: int = 1
    clusters: int = 0
    iterations: int = 10
    half: bool = False
    calls: int = 50
    ahead: int = 1
    relays: int = 0
    seed: int = 0
    into: str = ""

    def __post_init__(self) -> None:
        for name in ("rows", "dim", "batch", "ranks", "shards", "calls", "ahead", "iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.batch % self.ranks or self.batch > self.rows:
            raise UserError(
                f"--batch {self.batch} must be a multiple of --ranks {self.ranks} and at most --rows {self.rows}"
            )
        if not 0 <= self.clusters <= self.rows or self.clusters == 1:
            raise UserError(
                f"--clusters {self.clusters} must lie in 2..{self.rows}, the number of --rows, or be 0 (rows/40)"
            )

    @property
    def settings(self) -> MemorySettings:
        """The settings of the memory. It samples positives from the nearest other cluster."""
        dtype = "float16" if self.half else "float32"
        return MemorySettings(
            utterances=self.rows,
            queue=self.rows,
            reference_dim=self.dim,
            positive_dim=self.dim,
            reference_dtype=dtype,
            positive_dtype=dtype,
            clusters=self.clusters or max(2, self.rows // 40),
            neighbours=1,
            iterations=self.iterations,
            seed=self.seed,
        )


def measure(job: MemoryCase, say: Callable[[str], None] = lambda _: None) -> Figures:
    """The fields of ``job`` and the figures below. Call `rayssl.runtime.cluster.connect` first: this starts no cluster.

    - index_bytes, store_bytes: what `bytes_needed` predicts. peak_bytes: the most resident bytes of an actor.
    - fill_seconds, fill_rows_per_s.
    - refresh_seconds, objective: of the clustering.
    - exchange_ms_p50, _p95: one call of a rank, which remembers its part of a batch and recalls the next. All ranks
      call at once and as fast as they can. exchanges_per_s (of all ranks together), calls_per_s (of single ranks),
      steps_per_s, exchange_rows_per_s.
    - actor_cpu_ms: CPU time of the busiest actor for each step. Where ranks have cores of their own, it bounds the
      steps a second.
    - inside_ms_p50, _p95, with one shard only: sampling and look-up for ``batch`` anchors inside the actor.
    - pause_seconds: how long a training waits for the memory when it saves. save_seconds, restore_seconds, state_bytes.
    - save_exchanges, save_exchange_ms_max: of the exchanges beside the save. save_peak_ratio: the most resident bytes
      of an actor while it saves, over those before.
    - restored_equal: whether the restored memory gave the same rows.
    """
    settings = job.settings
    index, store = bytes_needed(settings, job.shards)
    figures: Figures = {**asdict(job), "clusters": settings.clusters, "index_bytes": index, "store_bytes": store}
    memory = _Memory(job, job.ranks)
    try:
        say(f"filling {job.rows:,} rows of {job.dim}")
        figures |= memory.fill()
        say(f"clustering into {settings.clusters:,}")
        refreshed = memory.refresh()
        figures |= {"refresh_seconds": refreshed["seconds"], "objective": refreshed["objective"]}
        say(f"exchanging {job.calls} batches of {job.batch}")
        figures |= memory.exchange()
        with nullcontext(job.into) if job.into else tempfile.TemporaryDirectory() as folder:
            say("saving beside exchanges")
            records, took = memory.save(folder)
            figures |= took
            figures["state_bytes"] = sum(int(record["bytes"]) for record in records.values())
            before = memory.recalled()
            figures["peak_bytes"] = memory.peak_bytes()
            memory.end()  # before the next one, which takes as many bytes, starts
            say("restoring")
            memory = _Memory(job, 1)
            began = time.perf_counter()
            memory.load(folder, records)
            figures["restore_seconds"] = time.perf_counter() - began
            after = memory.recalled()
            figures["restored_equal"] = np.array_equal(before.rows, after.rows) and bool(before.found.all())
            if job.into:
                for name in records:
                    storage.remove(storage.join(folder, name))
    finally:
        memory.end()
    return figures


class _Memory:
    """The actors of a memory and, as in a job, a process for each rank that calls them."""

    def __init__(self, job: MemoryCase, ranks: int) -> None:
        self._job, self._ranks = job, ranks
        settings, config = job.settings, MemoryConfig(shards=job.shards, half=job.half)
        prefix = f"bench:{os.urandom(4).hex()}"
        if job.shards == 1:
            self.index = ray.remote(_Timed).options(**options(config, prefix, ranks)).remote(settings, ranks, True)
            self.stores: list[Any] = []
        else:
            self.index, self.stores = start(settings, ranks, config, prefix)
        send = Exchanger(settings, self.index, self.stores) if self.stores else Sender(self.index)
        self.relays = _relays(prefix, min(job.relays, ranks), ranks, send)
        kind = ray.remote(_Ranks).options(num_cpus=0.1, scheduling_strategy="SPREAD")
        through = [self.relays[rank * len(self.relays) // ranks] if self.relays else send for rank in range(ranks)]
        self._clients = [
            kind.remote(job, {int(rank): through[rank] for rank in own}, ranks)
            for own in np.array_split(np.arange(ranks), min(ranks, _PROCESSES))
        ]
        get([client.ready.remote() for client in self._clients])

    def fill(self) -> Figures:
        began = time.perf_counter()
        get([client.fill.remote() for client in self._clients])
        seconds = time.perf_counter() - began
        return {"fill_seconds": seconds, "fill_rows_per_s": self._job.rows / seconds}

    def refresh(self) -> dict[str, float]:
        return get(self.index.refresh.remote(1))  # type: ignore[no-any-return]

    def exchange(self) -> Figures:
        get([client.exchange.remote(3) for client in self._clients])  # warm-up, not timed
        actors = (self.index, *self.stores)
        before = get([actor.__ray_call__.remote(_cpu_seconds) for actor in actors])
        began = time.perf_counter()
        taken = np.concatenate(get([client.exchange.remote(self._job.calls) for client in self._clients]))
        seconds = time.perf_counter() - began
        after = get([actor.__ray_call__.remote(_cpu_seconds) for actor in actors])
        busiest = max(end - start for start, end in zip(before, after, strict=True))
        rate = self._job.calls / seconds
        steps = rate * self._job.ahead
        figures: Figures = {**_quantiles("exchange", taken), "exchanges_per_s": rate}
        figures |= {"calls_per_s": rate * self._ranks, "steps_per_s": steps, "step_ms": 1000 / steps}
        figures["exchange_rows_per_s"] = steps * self._job.batch
        figures["actor_cpu_ms"] = 1000 * busiest / (self._job.calls * self._job.ahead)
        if not self.stores:
            figures |= _quantiles("inside", get(self.index.inside.remote(self._job.batch, self._job.calls)))
        return figures

    def save(self, folder: str) -> tuple[Records, Figures]:
        """Saves as a training does, beside exchanges. The longest of these, and the actors' RAM against before."""
        actors = (self.index, *self.stores)
        before = get([actor.__ray_call__.remote(_begin_peak) for actor in actors])
        began = time.perf_counter()
        save = snapshot_of(actors)
        pause = time.perf_counter() - began
        with ThreadPoolExecutor(1) as pool:
            saving, taken, calls = pool.submit(save, folder), [0.0], 0
            while not saving.done():
                taken += np.concatenate(get([client.exchange.remote(1) for client in self._clients])).tolist()
                calls += 1
            records = saving.result()
        after = get([actor.__ray_call__.remote(_peak_since) for actor in actors])
        figures: Figures = {
            "pause_seconds": pause,
            "save_seconds": time.perf_counter() - began,
            "save_exchanges": calls,
        }
        figures["save_exchange_ms_max"] = 1000 * max(taken)
        figures["save_peak_ratio"] = max(peak / rows for peak, rows in zip(after, before, strict=True))
        return records, figures

    def load(self, folder: str, records: dict[str, dict[str, Any]]) -> None:
        if not self.stores:
            get(self.index.load.remote(folder, records))
            return
        get(self.index.restore.remote(folder, records))
        get([store.restore.remote(folder, records) for store in self.stores])
        whitening = get(self.index.commit.remote())
        get([store.commit.remote(whitening) for store in self.stores])

    def recalled(self) -> RecallArrays:
        """The recall of one whole batch: the parts of all ranks together."""
        return _together(get([client.recalled.remote() for client in self._clients]))

    def peak_bytes(self) -> int:
        asked = [actor.__ray_call__.remote(_peak) for actor in (self.index, *self.stores)]
        return int(max(get(asked)))

    def end(self) -> None:
        for actor in (*self._clients, *self.relays, self.index, *self.stores):
            ray.kill(actor)


def _relays(prefix: str, count: int, ranks: int, send: relay.Send) -> list[Any]:
    here = ray.get_runtime_context().get_node_id()
    groups: list[list[int]] = [[] for _ in range(count)]
    for rank in range(ranks if count else 0):
        groups[rank * count // ranks].append(rank)
    return [relay.start(f"{prefix}:node:{place}", here, group, send) for place, group in enumerate(groups)]


class _Timed(Server):
    """The memory's actor, which can also time its own work."""

    async def inside(self, batch: int, calls: int) -> np.ndarray:
        """The seconds of each of ``calls`` recalls of ``batch`` anchors."""
        random, taken = np.random.default_rng(0), []
        for _ in range(calls):
            ids = random.choice(self.memory.settings.utterances, batch, replace=False)
            began = time.perf_counter()
            self.memory.recall(ids, epoch=1)
            taken.append(time.perf_counter() - began)
        return np.array(taken)


class _Ranks:
    """A process of some ranks, each with a thread."""

    def __init__(self, job: MemoryCase, through: dict[int, Any], world: int) -> None:
        self._ranks = [_Rank(job, send, rank, world) for rank, send in through.items()]
        self._threads = ThreadPoolExecutor(len(self._ranks))

    def ready(self) -> None:
        """Returns when the process is alive."""

    def fill(self) -> None:
        """See `_Rank.fill`."""
        list(self._threads.map(_Rank.fill, self._ranks))

    def exchange(self, calls: int) -> np.ndarray:
        """See `_Rank.exchange`; the seconds of all ranks."""
        return np.concatenate(list(self._threads.map(partial(_Rank.exchange, calls=calls), self._ranks)))

    def recalled(self) -> RecallArrays:
        """See `_Rank.recalled`; of all ranks."""
        return _together(list(self._threads.map(_Rank.recalled, self._ranks)))


class _Rank:
    """One rank. It does what a training worker does with its memory, and nothing else."""

    def __init__(self, job: MemoryCase, through: Any, rank: int, ranks: int) -> None:
        self._job, self._through, self._rank, self._ranks = job, through, rank, ranks
        self._calls = 0
        random = np.random.default_rng(job.seed)
        size = min(_POOL, max(2, job.rows))
        centres = random.standard_normal((max(1, size // 40), job.dim), dtype=np.float32)
        self._pool = unit_rows(centres[np.arange(size) % len(centres)])
        self._noise = 0.7 * unit_rows(random.standard_normal((_NOISE, job.dim), dtype=np.float32))
        self._order = random.permutation(job.rows)

    def fill(self) -> None:
        """Remembers this rank's part of all rows. Some of the last rows come twice: all ranks call equally often."""
        for first in range(0, self._job.rows, _FILL * self._ranks):
            ids = np.arange(first + self._rank * _FILL, first + (self._rank + 1) * _FILL) % self._job.rows
            self._call([self._rows(ids)], None)

    def exchange(self, calls: int) -> np.ndarray:
        """The seconds of each of ``calls`` exchanges."""
        taken = []
        ahead = self._job.ahead
        for first in range(0, calls * ahead, ahead):
            remember = [self._rows(self._batch(step)) for step in range(first, first + ahead)]
            ids = np.concatenate([self._batch(step) for step in range(first + ahead, first + 2 * ahead)])
            began = time.perf_counter()
            self._call(remember, ids)
            taken.append(time.perf_counter() - began)
        return np.array(taken)

    def recalled(self) -> RecallArrays:
        """The recall of this rank's part of a batch (of the whole batch if there is only one rank)."""
        recall = self._call([], self._batch(0))
        assert recall is not None
        return recall

    def _call(self, given: list[RememberArrays], ids: np.ndarray | None) -> RecallArrays | None:
        self._calls += 1
        part = Part(self._rank, given, ids, 1)
        if isinstance(self._through, Exchanger | Sender):
            return self._through(self._calls, [part])[0]
        return get(self._through.exchange.remote(self._calls, *part))  # type: ignore[no-any-return]

    def _batch(self, call: int) -> np.ndarray:
        size = self._job.batch // self._ranks
        first = call * self._job.batch + self._rank * size
        ids: np.ndarray = self._order[np.arange(first, first + size) % len(self._order)]
        return ids

    def _rows(self, ids: np.ndarray) -> RememberArrays:
        rows = self._pool[ids % len(self._pool)] + self._noise[ids % _NOISE]
        labels = (ids % 5000).astype(np.int32)
        return RememberArrays(ids, rows, rows, labels, labels)


def _together(parts: Sequence[RecallArrays]) -> RecallArrays:
    (whole,) = joined(parts)
    return whole


def _quantiles(name: str, seconds: np.ndarray) -> Figures:
    middle, high = np.quantile(1000 * seconds, (0.5, 0.95))
    return {f"{name}_ms_p50": float(middle), f"{name}_ms_p95": float(high)}


def _cpu_seconds(_: Any) -> float:
    return time.process_time()


def _peak(_: Any) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _begin_peak(_: Any) -> int:
    """The resident bytes of this process now; `_peak_since` gives the most from here on."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS")


def _peak_since(_: Any) -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) << 10

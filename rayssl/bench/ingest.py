"""Measures how fast a machine or a cluster reads, decodes and cuts utterances, and how many cores a GPU needs for it.

The batches take the whole way of a training, from the shards to the rank's device, but no network is trained: a pause
stands in for the step. A PyTorch DataLoader can be measured in turn with it.
"""

from __future__ import annotations

import math
import os
import string
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal, Protocol

from rayssl import storage
from rayssl.batches.plan import SHUFFLE_SHARDS, UNIT_ROWS
from rayssl.bench import corpus
from rayssl.data import shards
from rayssl.data.decode import Format
from rayssl.data.shards import Manifest
from rayssl.errors import UserError
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import Job, job_of
from rayssl.runtime import cluster
from rayssl.runtime.bench import processes
from rayssl.runtime.bench.consumer import Consumed
from rayssl.runtime.bench.processes import Key, Seconds
from rayssl.schema import parse
from rayssl.views.recipes import Segment, SegmentPlan

Figures = dict[str, Any]
Say = Callable[[str], None]
_ENDLESS = 10**8  # steps
_ROUNDS = 2  # of each, in turn
_KINDS = ("tasks", "splitter", "consumer", "rest")
_BUSY = 0.5  # load for each core
_WARM = 2  # bursts of batches that are not measured


@dataclass(frozen=True)
class IngestCase:
    """What to read, and for how long.

    ``corpus``: a prepared corpus; empty for a synthetic one of ``utterances`` of ``seconds`` in ``format``, below the
    folder or URI ``into`` (empty: a temporary folder). ``segments``: their lengths in seconds. ``batch``: of all
    ``ranks`` together. ``readers``: the number of data tasks at once; 0 for as many as a training would have.
    ``steps``: how many are measured; 0 for as many as ``duration`` seconds take. ``step_ms``: the pause in place of a
    step. ``target``: the utterances per second that all ranks together train on; 0 for those of steps of ``step_ms``.
    ``against``: what to compare with; empty for nothing.
    """

    corpus: str = ""
    utterances: int = 4096
    seconds: float = 3.0
    format: Format = "flac"
    into: str = ""
    segments: tuple[float, ...] = (2.0, 2.0)
    batch: int = 256
    ranks: int = 1
    readers: int = 0
    steps: int = 0
    duration: float = 10.0
    step_ms: float = 40.0
    target: float = 0.0
    shuffle_shards: int = SHUFFLE_SHARDS
    unit_rows: int = UNIT_ROWS
    seed: int = 0
    against: Literal["", "dataloader"] = ""


class Supply(Protocol):
    """One way in which batches come to ranks."""

    name: str
    device: str
    readers: int

    @property
    def burst(self) -> int:
        """The number of steps whose batches come at about the same time."""

    def open(self) -> float:
        """Starts; the seconds to the first batch."""

    def take(self, steps: int, pause_s: float = 0.0) -> list[Consumed]:
        """Takes batches on every rank."""

    def cpu(self) -> Seconds:
        """The CPU seconds so far, by process."""

    def kind(self, key: Key, title: str) -> str:
        """The kind of a process."""

    def close(self) -> None:
        """Ends."""


@dataclass(frozen=True)
class _Phase:
    """What was measured of ``utterances`` that came in ``seconds``: the share waited, CPU seconds by kind."""

    utterances: int
    seconds: float
    waiting: float
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        return self.utterances / self.seconds

    def per_1000(self, *kinds: str) -> float:
        """CPU seconds for 1,000 utterances; of all kinds if none is named."""
        return 1000 * sum(self.cpu.get(kind, 0.0) for kind in kinds or self.cpu) / self.utterances

    @property
    def constant(self) -> float:
        """The cores that are busy whether many utterances come or few."""
        return (self.cpu.get("splitter", 0.0) + self.cpu.get("rest", 0.0)) / self.seconds


@dataclass(frozen=True)
class _Round:
    """What was measured of one supply: ``fast`` without a pause, ``paced`` with the pause of a step."""

    readers: int
    device: str
    first_batch_s: float
    fast: _Phase
    paced: _Phase | None
    shipped: tuple[float, float] = (0.0, 0.0)
    start: str = ""


def measure(job: IngestCase, say: Say = lambda _: None) -> Figures:
    """The fields of ``job`` and the figures below. A warm-up is left out of them.

    - readers: the number of data tasks. device: where the batches came to. load: the machine's load average before.
    - utterances_per_s: all ranks together, without a pause. steps: how many were measured. first_batch_s: from the
      start of the reading.
    - cpu_seconds_per_1000 utterances, user and system, of all processes; and the parts of it: cpu_tasks_per_1000,
      cpu_splitter_per_1000, cpu_consumer_per_1000, cpu_rest_per_1000 (Ray itself and this process). On a cluster that
      was joined, other jobs count too.
    - bytes_encoded_per_utterance, in the shards. bytes_pcm_per_utterance, bytes_shipped_per_utterance: the samples that
      come to a rank, and all that comes.
    - waiting: the share of time that a rank waits for batches, with a pause of ``step_ms`` after each batch.
    - target, and cores_needed for it: tasks and consumers by utterance, the rest by second, rounded up. cores is the
      same before rounding.

    With ``against``, each is measured twice, in turn, and the figures are medians (waiting is measured once). Further
    ones are ratio: utterances_per_s divided by that of the DataLoader; and dataloader_utterances_per_s,
    dataloader_cpu_seconds_per_1000, dataloader_first_batch_s and dataloader_start (fork or spawn).

    Raises `UserError` for a job that is not possible.
    """
    _check(job)
    load = os.getloadavg()[0]
    if load > _BUSY * (os.cpu_count() or 1):
        say(f"other processes use this machine (load {load:.1f}): rates will be too low, and the ratio means nothing")
    found: Any = nullcontext((job.corpus, None))
    if not job.corpus:
        say(f"writing {job.utterances:,} utterances of {job.seconds:g} s as {job.format}")
        how: dict[str, Any] = {"utterances": job.utterances, "seconds": job.seconds, "format": job.format}
        found = corpus.synthetic(job.into, seed=job.seed, **how)
    with found as (uri, manifest):
        return _measured(job, uri, manifest or shards.read_manifest(storage.absolute(uri)), say) | {"load": load}


def job_for(job: IngestCase, uri: str, manifest: Manifest) -> Job:
    """A training of endless length on the corpus ``uri``, with the segments of ``job``."""
    if job.batch > manifest.rows:
        raise UserError(f"--batch {job.batch} is more than the corpus has: {manifest.rows} utterances")
    tree = {
        "run": storage.join(tempfile.gettempdir(), f"rayssl-bench-{os.urandom(4).hex()}"),  # nothing is written there
        "seed": job.seed,
        "corpus": {
            "uri": storage.absolute(uri),
            "shuffle_shards": job.shuffle_shards,
            "unit_rows": job.unit_rows,
            "readers": job.readers or "auto",
        },
        "encoder": {},
        "method": {"name": "simclr"},
        "training": {"epochs": 1, "epoch_steps": _ENDLESS, "batch": job.batch},
        "ray": {"workers": job.ranks},
    }
    made = job_of(parse(Experiment, tree, "rayssl bench ingest"), manifest)
    named = zip(string.ascii_lowercase, job.segments, strict=False)
    return replace(made, segments=SegmentPlan((tuple(Segment(name=name, seconds=s) for name, s in named),), ((),)))


def table(figures: Figures) -> str:
    """The figures for a person."""
    both = "ratio" in figures

    def line(text: str, name: str, digits: int = 0, *, theirs: bool = True, times: int = 1) -> str:
        values = [times * figures[name]]
        if both and theirs:
            values.append(figures[f"dataloader_{name}"])
        return f"{text:<38}" + "".join(f"{value:>14,.{digits}f}" for value in values)

    cut = " + ".join(f"{seconds:g}" for seconds in figures["segments"])
    lines = [
        f"segments of {cut} s, {figures['format']}, batch {figures['batch']}, {figures['ranks']} rank(s) on "
        f"{figures['device']}, {figures['readers']} reader(s), {figures['steps']} steps",
        f"{'':<38}{'rayssl':>14}" + (f"{'DataLoader':>14}" if both else ""),
        line("utterances per second", "utterances_per_s"),
        line("CPU seconds per 1,000 utterances", "cpu_seconds_per_1000", 3),
        *(
            line(f"  {text}", f"cpu_{kind}_per_1000", 3, theirs=False)
            for kind, text in (
                ("tasks", "data tasks"),
                ("splitter", "splitter"),
                ("consumer", "ranks"),
                ("rest", "Ray itself and the driver"),
            )
        ),
        line("seconds to the first batch", "first_batch_s", 1),
        line("bytes of an utterance, encoded", "bytes_encoded_per_utterance", theirs=False),
        line("bytes of an utterance, to a rank", "bytes_shipped_per_utterance", theirs=False),
        line(f"waiting, with steps of {figures['step_ms']:g} ms, %", "waiting", 1, theirs=False, times=100),
        line(f"cores for {figures['target']:,.0f} utterances/s", "cores_needed", theirs=False),
    ]
    if both:
        lines.append(f"rayssl / DataLoader: {figures['ratio']:.2f}")
    return "\n".join(lines)


def _check(job: IngestCase) -> None:
    for name in ("utterances", "ranks", "shuffle_shards", "unit_rows"):
        if getattr(job, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(job, name)}")
    for name, least in (("seconds", job.seconds), ("for", job.duration), ("step-ms", job.step_ms)):
        if not least > 0:
            raise UserError(f"--{name} must be above 0, got {least:g}")
    if job.readers < 0 or job.steps < 0 or job.target < 0 or job.seed < 0:
        raise UserError("--readers, --steps, --target and --seed must not be negative")
    if job.batch < 2 or job.batch % job.ranks:
        raise UserError(f"--batch {job.batch} must be at least 2, and a multiple of --ranks {job.ranks}")
    if not 1 <= len(job.segments) <= len(string.ascii_lowercase) or not min(job.segments) > 0:
        raise UserError("--segments takes 1 to 26 lengths above 0, with commas between them: 2,2")
    if job.corpus and job.into:
        raise UserError("--into is the place of a synthetic corpus; leave it out with --corpus")
    if job.against and job.ranks > 1:
        raise UserError(f"--against {job.against} compares one rank; leave --ranks out")


def _measured(job: IngestCase, uri: str, manifest: Manifest, say: Say) -> Figures:
    training = job_for(job, uri, manifest)
    rounds = _ROUNDS if job.against else 1
    ours: list[_Round] = []
    theirs: list[_Round] = []
    for number in range(rounds):
        ours.append(_ray(job, training, say, paced=number == rounds - 1))
        if job.against:
            theirs.append(_loader(job, training, ours[0].readers, say))
    last = ours[-1]
    assert last.paced is not None
    target = job.target or 1000 * job.batch / job.step_ms
    per_1000 = {kind: median(each.fast.per_1000(kind) for each in ours) for kind in _KINDS}
    constant = median(max(each.fast.constant, last.paced.constant) for each in ours)
    cores = target * (per_1000["tasks"] + per_1000["consumer"]) / 1000 + constant
    figures: Figures = {
        **asdict(job),
        "corpus": uri,
        "format": manifest.format,
        "utterances": manifest.rows,
        "seconds": round(manifest.seconds / manifest.rows, 3),
        "readers": last.readers,
        "device": last.device,
        "steps": last.fast.utterances // job.batch,
        **_common(ours),
        **{f"cpu_{kind}_per_1000": value for kind, value in per_1000.items()},
        "bytes_encoded_per_utterance": sum(shard.bytes for shard in manifest.shards) / manifest.rows,
        "bytes_pcm_per_utterance": last.shipped[0],
        "bytes_shipped_per_utterance": last.shipped[1],
        "waiting": last.paced.waiting,
        "target": target,
        "cores": cores,
        "cores_needed": math.ceil(cores),
    }
    if theirs:
        figures |= {f"dataloader_{name}": value for name, value in _common(theirs).items()}
        figures |= {"dataloader_start": theirs[-1].start}
        figures["ratio"] = figures["utterances_per_s"] / figures["dataloader_utterances_per_s"]
    return figures


def _common(rounds: list[_Round]) -> Figures:
    return {
        "utterances_per_s": median(each.fast.rate for each in rounds),
        "cpu_seconds_per_1000": median(each.fast.per_1000() for each in rounds),
        "first_batch_s": median(each.first_batch_s for each in rounds),
    }


def _ray(job: IngestCase, training: Job, say: Say, *, paced: bool) -> _Round:
    """Rayssl's own way. A cluster that was not there before ends afterwards: it would take CPU from the others."""
    before = cluster.started()
    cluster.connect(job.ranks * training.experiment.ray.cpus_per_worker, logs=False)
    from rayssl.runtime.bench.ingest import RaySupply  # imports ray, which must be after `connect`

    supply = RaySupply(training)
    try:
        done = _round(supply, job, say, paced=paced)
        return replace(done, shipped=supply.shipped())
    finally:
        supply.close()
        if not before:
            cluster.disconnect()


def _loader(job: IngestCase, training: Job, workers: int, say: Say) -> _Round:
    from rayssl.bench.dataloader import LoaderSupply

    supply = LoaderSupply(training, workers)
    try:
        return replace(_round(supply, job, say, paced=False), start=supply.started)
    finally:
        supply.close()


def _round(supply: Supply, job: IngestCase, say: Say, *, paced: bool) -> _Round:
    say(f"{supply.name}: waiting for the first batch, {supply.readers} reader(s)")
    first = supply.open()
    fast = _phase(supply, job, say, 0.0)
    slow = _phase(supply, job, say, job.step_ms / 1000) if paced else None
    return _Round(supply.readers, supply.device, first, fast, slow)


def _phase(supply: Supply, job: IngestCase, say: Say, pause_s: float) -> _Phase:
    how = f"with steps of {1000 * pause_s:g} ms" if pause_s else "as fast as they come"
    say(f"{supply.name}: taking batches {how}")
    supply.take(_WARM * supply.burst, pause_s)
    before, began = supply.cpu(), time.perf_counter()
    steps, waited, busy = 0, 0.0, 0.0
    while not steps or (not job.steps and time.perf_counter() - began < job.duration):
        taken = supply.take(job.steps or supply.burst, pause_s)
        steps += job.steps or supply.burst
        waited += sum(each.waited for each in taken)
        busy += sum(each.seconds for each in taken)
    seconds = time.perf_counter() - began
    cpu = processes.spent(before, supply.cpu(), supply.kind)
    done = _Phase(steps * job.batch, seconds, waited / busy, cpu)
    say(f"{supply.name}: {done.rate:,.0f} utterances/s, {done.per_1000():.3f} CPU seconds per 1,000")
    return done

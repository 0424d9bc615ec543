"""Training in this process alone, without Ray: the same loop, the same batches, the same bits as one Ray worker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rayssl import collectives
from rayssl.batches.plan import Cursor
from rayssl.batches.streams import joined
from rayssl.errors import DamagedCheckpoint, Stopped
from rayssl.experiment.build import build_loop
from rayssl.experiment.ending import ended
from rayssl.experiment.job import Job
from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.methods.base import Method
from rayssl.models.buffers import differing
from rayssl.progress import Event, Line, Lines, Screen
from rayssl.training import checkpoint
from rayssl.training.ahead import ReadAhead
from rayssl.training.context import ClassClient, InProcessClasses, InProcessMemory, MemoryClient
from rayssl.training.feed import cut, placed
from rayssl.training.loop import Loop
from rayssl.training.metrics import RunLog
from rayssl.training.stopping import Stopping
from rayssl.training.trackers.base import Identity, Several, Tracker
from rayssl.training.trackers.opening import open_all
from rayssl.views import reading
from rayssl.views.banks import RecordedBank
from rayssl.views.packed import Packed

_AHEAD = 4  # the number of batches that are read and decoded in advance


class LocalContext:
    """The loop's `Context` without Ray: one process alone, or one rank of a plain process group.

    ``screen`` shows the events of the run; None prints the lines among them. ``reported`` collects the metrics of each
    epoch. Each process has a replica of the memory; all replicas apply what all ranks remember, so that they are equal.
    """

    def __init__(self, job: Job, device: str | torch.device = "cpu", screen: Screen | None = None) -> None:
        self.rank = collectives.rank()
        self.world = collectives.world()
        self.device = torch.device(device)
        self.reported: list[dict[str, Any]] = []
        self._job = job
        self._screen = screen or _printed()

    def report(self, metrics: dict[str, Any]) -> None:
        """Appends ``metrics`` to ``reported``."""
        self.reported.append(metrics)

    def tell(self, event: Event) -> None:
        """Shows ``event`` on the screen."""
        self._screen.show(event)

    def say(self, line: str) -> None:
        """See `tell`."""
        self.tell(Line(line))

    def wrap(self, method: Method) -> nn.Module:
        """Averages gradients over the ranks if there are several."""
        return collectives.replicated(method, self.device, differing(method, statistics=method.reads_statistics))

    def bank(self, wanted: RecordedBank) -> NDArray[np.float32]:
        """Reads the bank in this process."""
        return wanted.read()

    def utterance_memory(self, settings: MemorySettings) -> MemoryClient:
        """A memory in this process."""
        return InProcessMemory(UtteranceMemory(settings))

    def class_memory(self, settings: ClassSettings) -> ClassClient:
        """A memory in this process."""
        return InProcessClasses(ClassMemory(settings))

    def open_log(self, resume_step: int | None) -> Tracker | None:
        """The run's own file and the trackers of the configuration, on rank 0."""
        if self.rank != 0:
            return None
        experiment = self._job.experiment
        own = RunLog(experiment.run, resume_step=resume_step)
        of = Identity(experiment.run, experiment.model_dump(mode="json"), resume_step is not None)
        return Several([own, *open_all(experiment.training.trackers, of, self.say)])


def train(
    job: Job, until: int | None = None, *, device: str | None = None, screen: Screen | None = None
) -> dict[str, Any]:
    """Trains the run of ``job``, or resumes it, in this process.

    ``ray.workers`` is ignored: this one rank takes the whole global batch. The first SIGTERM or SIGINT saves a
    checkpoint after the current step and ends the training; the second one ends it at once.

    Args:
        job: what to train, from `rayssl.experiment.job.resolve`.
        until: the epoch to train to (default, and at most: ``training.epochs``).
        device: None for a GPU, if there is one and ``ray.gpu`` is not false, and else the CPU.
        screen: shows the events of the run (default: prints the lines among them).

    Returns:
        The metrics of the last epoch.

    Raises:
        UserError: the user can fix it; the message is one line.
        Stopped: a signal ended the training.
    """
    experiment = job.experiment
    until = min(until or experiment.training.epochs, experiment.training.epochs)
    screen = screen or _printed()
    done = ended(job, until, lambda line: screen.show(Line(line)))
    if done is not None:
        return done
    for line in job.header():
        screen.show(Line(line))
    torch.set_num_threads(max(1, int(experiment.ray.cpus_per_worker)))
    if device is None:
        device = "cuda" if experiment.ray.gpu is not False and torch.cuda.is_available() else "cpu"
    loop = _built(job, device, screen)
    start = loop.cursor
    made = batches(job, start, until, device=torch.device(device))
    with _Signals(screen) as signals, ReadAhead(made, _AHEAD, "rayssl-read") as rows:
        if signals.listening:
            loop.state.stopping = Stopping(signals.heard)
        log = loop.state.log
        assert log is not None
        try:
            metrics = loop.fit(rows, until)
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                log.close(failed=True)
            raise
        log.close()
    if loop.stopped and loop.cursor.epoch < until:
        assert signals.received is not None
        raise Stopped(f"{experiment.run}: stopped at step {loop.step}; the same command resumes", signals.received)
    return metrics


def _built(job: Job, device: str, screen: Screen) -> Loop:
    """The loop at the run's last checkpoint, or at the one before if that is damaged."""
    while True:
        try:
            return build_loop(job, LocalContext(job, device, screen))
        except DamagedCheckpoint as error:
            line = checkpoint.go_back(job.run, error)
            if line is None:
                raise
            screen.show(Line(line))


def _printed() -> Screen:
    return Lines(partial(print, flush=True))


def batches(
    job: Job,
    start: Cursor,
    until: int | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
) -> Iterator[dict[str, Any]]:
    """The batches of ``rank`` of ``world`` from ``start`` to the end of epoch ``until``; see `rayssl.views.reading`.

    With a GPU as ``device``, they are placed there, see `rayssl.training.feed`.
    """
    packed = [_stream(job, name, start, until, rank, world) for name in job.streams]
    if device is not None and device.type == "cuda":
        streams = [placed(rows, device) for rows in packed]
    else:
        streams = [cut(rows) for rows in packed]
    return joined(streams[0], streams[1] if len(streams) > 1 else None)


def _stream(job: Job, name: str, start: Cursor, until: int | None, rank: int, world: int) -> Iterator[Packed]:
    settings = job.read_settings(name, world)
    until = job.experiment.training.epochs if until is None else until
    for unit in job.units(name, start, until, world)():
        yield from reading.read(unit, settings, job.segments_of(name, unit.epoch, fill=unit.fill), only=rank)


class _Signals:
    """A context that notes the first SIGTERM or SIGINT of this process. The second one ends the process at once.

    Only the main thread receives signals: in another thread `heard` is always False.
    """

    def __init__(self, screen: Screen) -> None:
        self.received: signal.Signals | None = None
        self.listening = threading.current_thread() is threading.main_thread()
        self._screen = screen
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if self.listening:
            self._before = {which: signal.signal(which, self._on) for which in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def heard(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            text = "ended at once by a second signal; the same command resumes from the last checkpoint"
            raise Stopped(text, number)
        self.received = signal.Signals(number)
        text = f"{self.received.name}: saves after the current step and then stops; a second signal stops at once"
        self._screen.show(Line(text))

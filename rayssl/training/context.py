"""What the loop needs from the process it runs in.

`rayssl.experiment.local` implements it without Ray, `rayssl.runtime.train` with Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import zip_longest
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rayssl import collectives
from rayssl.memory.classes.memory import ClassMemory, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.methods.base import Method
from rayssl.progress import Event
from rayssl.training import pieces
from rayssl.training.pieces import Records
from rayssl.training.trackers.base import Tracker
from rayssl.views.banks import RecordedBank

Answer: TypeAlias = "Future[RecallArrays | None]"


class Context(Protocol):
    """The process that a loop runs in: its ``rank`` of ``world`` ranks, and its ``device``."""

    rank: int
    world: int
    device: torch.device

    def report(self, metrics: dict[str, Any]) -> None:
        """Gives the runtime the metrics of an epoch. Every rank calls this at the end of each epoch."""

    def tell(self, event: Event) -> None:
        """Shows ``event`` on the screen of the run."""

    def say(self, line: str) -> None:
        """Shows one line of progress for a person."""

    def wrap(self, method: Method) -> nn.Module:
        """The module that the loop calls in a step: ``method`` with its gradients averaged over the ranks."""

    def bank(self, wanted: RecordedBank) -> NDArray[np.float32]:
        """The bank that ``wanted`` describes. It may be read-only and shared with other ranks: copy it.

        Raises `ConfigError` or `CorpusError` if its corpus cannot be used.
        """

    def utterance_memory(self, settings: MemorySettings) -> MemoryClient:
        """This rank's client of the run's one memory of utterances. Every rank must call this."""

    def class_memory(self, settings: ClassSettings) -> ClassClient:
        """This rank's client of the run's one memory of classes. Every rank must call this."""

    def open_log(self, resume_step: int | None) -> Tracker | None:
        """The tracker that takes this rank's figures, or None.

        ``resume_step`` is the step of the checkpoint that the run resumes from, None for a new run.
        """


class Checkpointable(Protocol):
    """How the loop measures, saves and restores a memory of either kind."""

    def metrics(self) -> dict[str, float]:
        """The counts since the last call. Only rank 0 calls this."""

    def snapshot(self) -> Callable[[str], Records]:
        """Keeps the whole memory as it is now, without a copy of it. Only rank 0 calls this, between steps.

        The result is called once, in another thread, while the training continues. It writes what was kept into the
        folder of a checkpoint and returns the records of the files. It waits for a clustering that is under way now:
        its result is part of the checkpoint.
        """

    def watch(self) -> None:
        """Raises RuntimeError if the memory is gone. A rank calls this when an answer does not come for some time."""

    def load(self, folder: str, records: Records) -> None:
        """Restores the memory from what `snapshot` wrote. Every rank must call this.

        Raises ValueError on all ranks if it does not fit; the memory is unchanged then.
        """


class MemoryClient(Checkpointable, Protocol):
    """The loop's side of the memory of utterances. Every rank makes the same calls in the same order."""

    def exchange(self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int) -> Answer:
        """Gives the memory what this rank remembers of some steps and asks for the recall of ``ids``. Does not wait.

        The memory answers after it has applied what every rank gave in the same call (strict), or at once (ahead).
        Strict: step by step, and in each step in the order of the ranks. ``ids`` None asks for nothing.
        """

    def refresh(self, epoch: int) -> dict[str, float]:
        """Clusters once for the whole job. Returns on every rank when the new assignment is in use."""

    def centroids(self) -> np.ndarray:
        """Those of the clustering in use, float32 ``[K, D_repr]``, on every rank."""


class ClassClient(Checkpointable, Protocol):
    """The loop's side of the memory of classes. Every rank makes the same calls in the same order."""

    def remember(self, remember: ClassRememberArrays) -> Future[None]:
        """Gives the memory what this rank has found. Does not wait; wait for it before the next call.

        Strict: what all ranks give in a call is applied in the order of the ranks.
        """


class InProcessMemory:
    """A memory of utterances in every process, without Ray.

    Every process applies what all ranks remember, in the same order, so that all replicas are exactly equal.
    """

    def __init__(self, memory: UtteranceMemory) -> None:
        self.memory = memory

    def exchange(self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int) -> Answer:
        """See `MemoryClient.exchange`; strict."""
        for step in zip_longest(*collectives.gather_objects(list(remember))):
            for part in step:
                if part is not None:
                    self.memory.remember(part)
        answer: Future[RecallArrays | None] = Future()
        everyone = collectives.gather_objects(ids)
        recalls = [None if part is None else self.memory.recall(part, epoch=epoch) for part in everyone]
        # every replica computes the recalls of all ranks, so that all count the same metrics
        answer.set_result(recalls[collectives.rank()])
        return answer

    def refresh(self, epoch: int) -> dict[str, float]:
        """See `MemoryClient.refresh`. Every replica computes it, with the same result."""
        return self.memory.refresh(epoch)

    def centroids(self) -> np.ndarray:
        """See `MemoryClient.centroids`."""
        return self.memory.centroids()

    def metrics(self) -> dict[str, float]:
        """See `Checkpointable.metrics`."""
        return self.memory.metrics(reset=True)

    def snapshot(self) -> Callable[[str], Records]:
        """See `Checkpointable.snapshot`."""
        kept = self.memory.snapshot()
        return lambda folder: pieces.write(folder, kept)

    def watch(self) -> None:
        """See `Checkpointable.watch`; it is in this process."""

    def load(self, folder: str, records: Records) -> None:
        """See `Checkpointable.load`."""
        self.memory.restore(pieces.read_index(folder, records), pieces.reader(folder, records))


class InProcessClasses:
    """A memory of classes in every process, without Ray.

    Every process applies what all ranks remember, in the same order, so that all replicas are exactly equal.
    """

    def __init__(self, memory: ClassMemory) -> None:
        self.memory = memory

    def remember(self, remember: ClassRememberArrays) -> Future[None]:
        """See `ClassClient.remember`; strict."""
        for part in collectives.gather_objects(remember):
            self.memory.remember(part)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def metrics(self) -> dict[str, float]:
        """See `Checkpointable.metrics`."""
        return self.memory.metrics()

    def snapshot(self) -> Callable[[str], Records]:
        """See `Checkpointable.snapshot`."""
        kept = self.memory.snapshot()
        return lambda folder: pieces.write(folder, kept)

    def watch(self) -> None:
        """See `Checkpointable.watch`; it is in this process."""

    def load(self, folder: str, records: Records) -> None:
        """See `Checkpointable.load`."""
        self.memory.restore(pieces.read_index(folder, records), pieces.reader(folder, records))

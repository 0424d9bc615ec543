"""What the loop needs from where it runs. `rayssl.experiment.local` has it without Ray, `rayssl.runtime.train` with."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import nn

from rayssl import collectives
from rayssl.memory.classes.memory import ClassMemory, ClassRecallArrays, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.methods.base import Method
from rayssl.training import pieces
from rayssl.training.pieces import Records
from rayssl.training.trackers.base import Tracker

Answer: TypeAlias = "Future[RecallArrays | None]"


class Context(Protocol):
    """Where a loop runs. ``report`` is called equally often on every rank, at each end of an epoch."""

    rank: int
    world: int
    device: torch.device

    def report(self, metrics: dict[str, Any]) -> None:
        """Tells the runtime about an epoch."""

    def say(self, line: str) -> None:
        """One line of progress for a person."""

    def wrap(self, method: Method) -> nn.Module:
        """What the loop calls in a step: ``method`` with its gradients averaged over the ranks."""

    def utterance_memory(self, settings: MemorySettings) -> MemoryClient:
        """This rank's client of the one memory of utterances; called on all ranks."""

    def class_memory(self, settings: ClassSettings) -> ClassClient:
        """This rank's client of the one memory of classes; called on all ranks."""

    def open_log(self, resume_step: int | None) -> Tracker | None:
        """What takes this rank's figures, None where nothing does; ``resume_step``: of the checkpoint it resumes."""


class Checkpointable(Protocol):
    """What the loop measures, saves and restores of a memory, whatever it remembers."""

    def metrics(self) -> dict[str, float]:
        """What was counted since the last call; to be called on rank 0 only."""

    def save(self, folder: str) -> Records:
        """Writes the whole memory into the folder of a checkpoint; to be called on rank 0 only, between steps.

        Returns the records of the files. Waits for a clustering that is under way, whose result belongs to it.
        """

    def load(self, folder: str, records: Records) -> None:
        """Restores the memory from what `save` wrote; to be called on every rank.

        Raises ValueError on all of them, with nothing changed, where it does not fit.
        """


class MemoryClient(Checkpointable, Protocol):
    """The loop's side of the memory of utterances. Every rank makes the same calls in the same order."""

    def exchange(self, remember: RememberArrays | None, ids: np.ndarray | None, epoch: int) -> Answer:
        """Gives what this rank remembers of a step and asks for the recall of ``ids``, without waiting for it.

        The memory answers after it has applied what every rank gave in the same call (strict), or at once (ahead).
        """

    def refresh(self, epoch: int) -> dict[str, float]:
        """One clustering for the whole job; returns on every rank when the new assignment is in use."""


class ClassClient(Checkpointable, Protocol):
    """The loop's side of the memory of classes. Every rank makes the same calls in the same order."""

    def exchange(self, remember: ClassRememberArrays, step: int | None) -> Future[ClassRecallArrays | None]:
        """Gives what this rank has found and asks for the prototypes as ``step`` shall see them; None asks nothing.

        Strict: what every rank gave in this call is in the answer, as in the published step. Ahead: the answer is that
        to the call before, which has come meanwhile.
        """


class InProcessMemory:
    """A replica in every process, kept equal by exchanging what all ranks remember: exact, and without Ray."""

    def __init__(self, memory: UtteranceMemory) -> None:
        self.memory = memory

    def exchange(self, remember: RememberArrays | None, ids: np.ndarray | None, epoch: int) -> Answer:
        """See `MemoryClient.exchange`; strict."""
        for part in collectives.gather_objects(remember):
            if part is not None:
                self.memory.remember(part)
        answer: Future[RecallArrays | None] = Future()
        everyone = collectives.gather_objects(ids)
        recalls = [None if part is None else self.memory.recall(part, epoch=epoch) for part in everyone]
        # all are computed, so that every replica counts the same metrics
        answer.set_result(recalls[collectives.rank()])
        return answer

    def refresh(self, epoch: int) -> dict[str, float]:
        """See `MemoryClient.refresh`; computed by every replica, with the same result."""
        return self.memory.refresh(epoch)

    def metrics(self) -> dict[str, float]:
        """See `Checkpointable.metrics`."""
        return self.memory.metrics(reset=True)

    def save(self, folder: str) -> Records:
        """See `Checkpointable.save`."""
        return pieces.write(folder, self.memory.pieces())

    def load(self, folder: str, records: Records) -> None:
        """See `Checkpointable.load`."""
        self.memory.restore(pieces.read_index(folder, records), pieces.reader(folder, records))


class InProcessClasses:
    """A replica in every process, kept equal by exchanging what all ranks remember: exact, and without Ray."""

    def __init__(self, memory: ClassMemory) -> None:
        self.memory = memory

    def exchange(self, remember: ClassRememberArrays, step: int | None) -> Future[ClassRecallArrays | None]:
        """See `ClassClient.exchange`; strict."""
        for part in collectives.gather_objects(remember):
            self.memory.remember(part)
        answer: Future[ClassRecallArrays | None] = Future()
        answer.set_result(None if step is None else self.memory.recall(step))
        return answer

    def metrics(self) -> dict[str, float]:
        """See `Checkpointable.metrics`."""
        return self.memory.metrics()

    def save(self, folder: str) -> Records:
        """See `Checkpointable.save`."""
        return pieces.write(folder, self.memory.pieces())

    def load(self, folder: str, records: Records) -> None:
        """See `Checkpointable.load`."""
        self.memory.restore(pieces.read_index(folder, records), pieces.reader(folder, records))

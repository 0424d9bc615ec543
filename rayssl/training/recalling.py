"""What a loop says to the memory of utterances: one request for a group of ``ahead`` steps, while it computes.

A request gives the memory what this rank remembers of the steps of a group, and asks for the positives of all batches
of the next group. So calls become fewer by ``ahead``, and the positives of a step come from the memory as it was before
its group. Groups count from the beginning of an epoch, and a checkpoint stands between two of them: a resumed run asks
for the same groups.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import torch

from rayssl import transfer
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.methods.base import Recall
from rayssl.training.context import Answer, Checkpointable, MemoryClient
from rayssl.training.inputs import Later, Raw

T = TypeVar("T")
Peek = Callable[[int], list[Raw]]  # the next batches, which are not taken yet

_FILLING = 2  # requests of the pass that fills the memory under way at once: few, so that rows do not pile up
_ASK_S = 10.0  # how long an answer may take before the memory is asked whether it is still there


def answer_of(memory: Checkpointable, asked: Future[T]) -> T:
    """The answer of ``memory``. Raises RuntimeError if the memory is gone meanwhile."""
    while futures.wait([asked], _ASK_S).not_done:
        memory.watch()
    return asked.result()


class Answers:
    """The answers of ``memory``, and how long steps have waited for them."""

    def __init__(self, memory: Checkpointable) -> None:
        self._memory, self._waited = memory, 0.0

    def of(self, asked: Future[T]) -> T:
        """See `answer_of`."""
        began = time.perf_counter()
        found = answer_of(self._memory, asked)
        self._waited += time.perf_counter() - began
        return found

    def waited(self) -> float:
        """The seconds since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


class Recaller:
    """The requests of one rank to ``memory``, in groups of ``ahead`` steps of an epoch of ``epoch_steps``."""

    def __init__(self, memory: MemoryClient, ahead: int, epoch_steps: int) -> None:
        self._memory, self._ahead, self._epoch_steps = memory, ahead, epoch_steps
        self.answers = Answers(memory)
        self._asked: Future[RecallArrays | None] | None = None  # for the group that begins next
        self._recalls: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque()  # of the steps left of this group
        self._written: list[Later[RememberArrays]] = []
        self._filling: deque[Answer] = deque()  # requests of the pass that fills the memory, not yet answered

    def begin_epoch(self) -> None:
        """Nothing is asked yet."""
        self._asked = None
        self._recalls.clear()

    def recall(self, epoch: int, step: int, raw: Raw, peek: Peek, device: torch.device) -> Recall | None:
        """The positives of the batch ``raw`` of ``step``; asks for them if nobody has."""
        if not self._recalls:
            asked = self._asked
            if asked is None:
                group = [raw, *peek(self._steps_from(step) - 1)]
                asked = self._memory.exchange((), _ids(group), epoch)
            self._asked = None
            answer = self.answers.of(asked)
            if answer is None:
                return None
            size = len(raw["id"])
            parts = range(0, len(answer.found), size)
            arrays = (answer.rows, answer.found, answer.ids)
            for at in parts:
                rows, found, ids = (each[at : at + size] for each in arrays)
                self._recalls.append((rows, found, ids))
        return Recall(*(transfer.send(each, device) for each in self._recalls.popleft()))

    def remember(self, epoch: int, step: int, what: Later[RememberArrays] | None, peek: Peek | None) -> None:
        """Takes what is remembered of ``step``, which is on its way. After the last step of a group it sends the
        request.

        ``peek`` None asks for nothing; it waits then until the memory has applied what was sent, for whoever reads the
        memory next: a checkpoint, or a clustering.
        """
        if what is not None:
            self._written.append(what)
        if not self.ends_group(step + 1):
            return
        written, self._written = self._written, []
        ids = None if peek is None else _ids(peek(self._steps_from(step + 1)))
        asked = self._memory.exchange([each() for each in written], ids, epoch)
        if ids is None:
            self.answers.of(asked)
        else:
            self._asked = asked

    def fill(self, epoch: int, what: Later[RememberArrays]) -> None:
        """Gives the memory the rows of a batch of the pass that fills it. `filled` waits until all are there."""
        self._filling.append(self._memory.exchange([what()], None, epoch))
        if len(self._filling) > _FILLING:
            answer_of(self._memory, self._filling.popleft())

    def filled(self) -> None:
        """Waits until the memory has all rows of the pass."""
        while self._filling:
            answer_of(self._memory, self._filling.popleft())

    def ends_group(self, done: int) -> bool:
        """Whether a group ends after ``done`` steps of the epoch."""
        return done % self._ahead == 0 or done == self._epoch_steps

    def _steps_from(self, step: int) -> int:
        """The number of steps from ``step`` to the end of its group."""
        return min(self._ahead - step % self._ahead, self._epoch_steps - step)


def _ids(group: Sequence[Raw]) -> np.ndarray:
    return np.concatenate([raw["id"] for raw in group])

"""What rank 0 tells of a training, for the screen of a run."""

from __future__ import annotations

import time

from rayssl.progress import Filling, Line, Phase, Stepped, Trained
from rayssl.training.state import TrainState

_EVERY_S = 1.0  # between two events of steps without a loss: a bar moves


class Teller:
    """Tells the events of the loop that has ``state``, on rank 0."""

    def __init__(self, state: TrainState) -> None:
        self._state, self._tells = state, state.context.rank == 0
        self._epochs = state.config.epochs
        self._steps = self._epochs * state.steps_per_epoch
        self._told = -_EVERY_S
        self._began = time.perf_counter()  # of the epoch

    def begin_epoch(self, epoch: int) -> None:
        """Before the first step of ``epoch`` (from 0), and before its clustering."""
        self._began = time.perf_counter()
        recalls = self._state.method.config.recalls
        if self._tells and epoch > 0 and recalls(epoch) and not recalls(epoch - 1):
            text = "positives come from other utterances from here on: the loss jumps, and does not compare with before"
            self._state.context.tell(Line(f"epoch {epoch + 1}: {text}"))

    def phase(self, epoch: int, what: str, seconds: float) -> None:
        """Something of ``epoch`` (from 0) that is no step has ended."""
        if self._tells:
            self._state.context.tell(Phase(f"epoch {epoch + 1}: {what}", seconds))

    def filling(self, epoch: int, batches: int) -> None:
        """So many ``batches`` of the pass before ``epoch`` (from 0) are in the memory."""
        if self._tells and self._due():
            size, of = self._state.config.batch, self._state.pass_steps or self._state.steps_per_epoch
            self._state.context.tell(Filling(epoch + 1, batches * size, max(batches, of) * size))

    def step(self, epoch: int, done: int) -> None:
        """``done`` steps are done, the last one in ``epoch`` (from 0)."""
        if self._tells and self._due():
            self._state.context.tell(Stepped(epoch + 1, self._epochs, done, self._steps))

    def loss(self, epoch: int, done: int, loss: float, speed: dict[str, float]) -> None:
        """As `step`, with the mean ``loss`` and the ``speed`` of `MetricAccumulator.speed` since the last one."""
        if self._tells:
            self._due(always=True)
            rate, waiting = speed["utterances_per_s"], speed["data_wait"]
            self._state.context.tell(Stepped(epoch + 1, self._epochs, done, self._steps, loss, rate, waiting))

    def trained(self, epoch: int, done: int, figures: dict[str, float]) -> None:
        """``epoch`` (from 1) has ended after ``done`` steps."""
        if self._tells:
            seconds = time.perf_counter() - self._began
            self._state.context.tell(Trained(epoch, self._epochs, done, self._steps, seconds, figures))

    def _due(self, always: bool = False) -> bool:
        now = time.perf_counter()
        if not always and now - self._told < _EVERY_S:
            return False
        self._told = now
        return True

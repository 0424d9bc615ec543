"""Validation inside the loop: when it happens, what becomes of its figures, and when the training ends by them.

Order at the end of an epoch: the checkpoint is written; then the ranks compute the figures; then they are added to the
``meta.json`` of that checkpoint. So a process that dies meanwhile loses nothing: the run resumes from this checkpoint,
sees that its figures are missing, and validates first. The training is not changed by any of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rayssl import collectives
from rayssl.progress import Line
from rayssl.training import checkpoint
from rayssl.training.checkpoint import Meta
from rayssl.training.trackers.base import Tracker
from rayssl.training.validate import PREFIX, ValidateConfig, shown

if TYPE_CHECKING:
    from rayssl.training.loop import Loop

Standing = dict[str, float]  # see `stood`


def pending(config: ValidateConfig | None, epochs: int, epoch: int, epoch_step: int, standing: Standing) -> bool:
    """Whether the end of ``epoch`` (from 1) of ``epochs`` still needs its validation."""
    if config is None or epoch_step or not config.due(epoch, epochs):
        return False
    return standing.get("epoch") != epoch


def exhausted(config: ValidateConfig | None, standing: Standing) -> bool:
    """Whether ``patience`` ends the training."""
    return config is not None and 0 < config.patience <= standing.get("waited", 0)


def stood(config: ValidateConfig, since: int, standing: Standing, epoch: int, figures: Mapping[str, float]) -> Standing:
    """What is known after the validation of ``epoch`` (from 1) with ``figures``.

    ``epoch``: the last one that was validated. ``best`` and ``best_epoch``: the best value of the metric and the first
    epoch with it, and ``waited``: the validations after it. They count anew after the epoch ``since``, and ``waited``
    is 0 before.
    """
    value, fresh = figures.get(config.metric), standing.get("epoch", 0) <= since < epoch
    kept: Standing = {} if fresh else {name: value for name, value in standing.items() if name != "epoch"}
    if value is None:
        return {**kept, "epoch": epoch}
    sign = 1.0 if config.best == "min" else -1.0
    if "best" not in kept or sign * value < sign * kept["best"]:
        return {"epoch": epoch, "best": value, "best_epoch": epoch, "waited": 0}
    return {**kept, "epoch": epoch, "waited": kept["waited"] + 1 if epoch > since else 0}


def line(config: ValidateConfig, standing: Standing, figures: Mapping[str, float], seconds: float) -> str:
    """What a person is told of a validation."""
    listed = ", ".join(shown(name, value) for name, value in figures.items()) or "no figure yet"
    best = ""
    if standing.get("best_epoch", standing["epoch"]) != standing["epoch"]:
        best = f"; best {shown(config.metric, standing['best'])} in epoch {standing['best_epoch']:.0f}"
    text = f"epoch {standing['epoch']:.0f}: validated in {seconds:.1f} s: {listed}{best}"
    if exhausted(config, standing):
        text += f"; {config.patience} validations without a better one: the training ends"
    return text


def record(
    run: str,
    meta: Meta,
    figures: Mapping[str, float],
    standing: Standing,
    log: Tracker | None,
    prune: Callable[[], None],
) -> None:
    """Writes ``figures`` of the checkpoint ``meta`` of ``run``: into ``log``, then into its ``meta.json``."""
    if log is not None:
        log.write("validate", meta.step, epoch=meta.epoch, **figures)
        log.flush()
    checkpoint.amend(run, meta.step, prefixed(figures), standing)
    prune()  # the one that was best until now may go


def prefixed(figures: Mapping[str, float]) -> dict[str, float]:
    """``figures`` under the names that they have among the metrics of an epoch."""
    return {PREFIX + name: value for name, value in figures.items()}


class Validation:
    """The validations of ``loop``. Every rank makes the same calls."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.standing: Standing = {}  # see `stood`; it goes into every checkpoint

    @property
    def exhausted(self) -> bool:
        """Whether the training has to end now."""
        return exhausted(self._loop.state.config.validate, self.standing)

    def run_if_due(self) -> None:
        """Validates if an epoch has just ended that needs it. Its checkpoint must be written, or being written."""
        loop, state = self._loop, self._loop.state
        config, at = state.config.validate, loop.cursor
        if config is None or state.judge is None:
            return
        if not pending(config, state.config.epochs, at.epoch, at.step, self.standing):
            return
        began = time.perf_counter()
        figures = state.judge.figures(state.method, loop.metrics)
        self.standing = stood(config, state.method.config.loss_changes_after, self.standing, at.epoch, figures)
        loop.metrics = {**loop.metrics, **prefixed(figures)}
        loop.await_saver()
        collectives.on_rank_0(lambda: self._record(figures))
        if state.context.rank == 0:
            state.context.tell(Line(line(config, self.standing, figures, time.perf_counter() - began)))
        loop.leave_out(time.perf_counter() - began)

    def _record(self, figures: Mapping[str, float]) -> None:
        loop, state = self._loop, self._loop.state
        meta = Meta(loop.step, loop.cursor.epoch, loop.cursor.step, state.architecture)
        record(state.run, meta, figures, self.standing, state.log, loop.saver.prune)

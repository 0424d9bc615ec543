"""The training loop: one class for every method, on one rank or many, with or without Ray.

Order inside a step: forward; loss; what the memory is to remember begins to leave the device; backward; one request
that gives it to the memory and asks for the ids of the *next* batch; optimiser step. The host waits for the copies
only, while the device computes the backward pass. The memory works until the next step needs its answer
(`rayssl.training.recalling`). If a checkpoint follows, the loop asks for the next recall only after the memory has been
saved. A resumed run then repeats this recall exactly once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayssl import collectives
from rayssl.batches.plan import Cursor, cycle_position
from rayssl.errors import UserError
from rayssl.methods.base import (
    Batch,
    ClassRemember,
    Outputs,
    Recalled,
    Remember,
    Remembered,
    Views,
)
from rayssl.training import checkpoint, kernels, resuming
from rayssl.training.checkpoint import Meta
from rayssl.training.classes import HeldClasses
from rayssl.training.filling import fill
from rayssl.training.inputs import Later, Raw, batch_of, make_views, to_memory
from rayssl.training.meters import CLASS_FIGURES, UTTERANCE_FIGURES, MetricAccumulator, device_memory, no_figure
from rayssl.training.optim import build_optimiser, clip_gradients
from rayssl.training.passes import InParts, WholeBatch
from rayssl.training.recalling import Recaller
from rayssl.training.saving import Saver
from rayssl.training.schedules import learning_rate
from rayssl.training.state import TrainState
from rayssl.training.telling import Teller
from rayssl.training.validating import Validation
from rayssl.training.verifying import verify
from rayssl.views.recipes import Segment


class Loop:
    """Trains ``state.method`` over batches. If there is a checkpoint, call `restore` before `fit`."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.optimiser = build_optimiser(state.config.optimiser, state.method)
        self._passes: WholeBatch | InParts = WholeBatch(state.wrapped, self.precision)
        if state.config.accumulate > 1:
            self._passes = InParts(state.method, state.config.accumulate, state.context.device, self.precision)
        self.join_views: bool | None = None  # see `make_views`; tests set it, to compute on a CPU as on a GPU
        self.step = 0  # optimiser steps done
        self.stopped = False  # all ranks have agreed to leave before the last epoch, see `Stopping`
        self.cursor = Cursor()
        memory = state.memory
        self.recaller = None if memory is None else Recaller(memory, state.ahead, state.steps_per_epoch)
        settings, owner = state.class_settings, state.prototypes
        self.classes = None if settings is None or owner is None else HeldClasses(settings, owner, state.context.device)
        self._looked_at: deque[Raw] = deque()  # batches that were read before their step
        self.refreshed: dict[str, float] = {}  # figures of this epoch's clustering
        self.metrics: dict[str, float] = {}  # of the last epoch that has ended
        self._window, self._epoch = MetricAccumulator(), MetricAccumulator()
        self.teller = Teller(state)
        self.saver = Saver(state.run, state.config.checkpoints, state.best)
        self.validation = Validation(self)

    def restore(self, loaded: checkpoint.Loaded) -> None:
        """Restores the state that ``loaded`` holds. Raises `CheckpointError` if it does not fit this run."""
        resuming.restore(self, loaded)

    def resume(self, meta: Meta, cursor: Cursor, epoch: MetricAccumulator, refreshed: dict[str, float]) -> None:
        """Continues at ``cursor``, with the figures so far of the ``epoch`` and of its clustering."""
        self._epoch, self.refreshed, self.metrics = epoch, refreshed, dict(meta.metrics)
        self.step, self.cursor, self.validation.standing = meta.step, cursor, dict(meta.validated)

    def fit(self, batches: Iterator[Raw], last: int | None = None) -> dict[str, float]:
        """Trains to the end of ``batches`` and returns the metrics of the last epoch that has ended.

        ``batches`` start at the cursor and end with epoch ``last`` (default: ``training.epochs``). `stopped` is True
        afterwards if all ranks agreed to leave earlier. Raises `UserError` when the training diverges.
        """
        try:
            with kernels.chosen(self.state):
                metrics = self._fit(iter(batches), self.state.config.epochs if last is None else last)
            self.await_saver()
        except BaseException:
            self.saver.leave()
            raise
        return metrics

    def _fit(self, batches: Iterator[Raw], last: int) -> dict[str, float]:
        self.validation.run_if_due()  # if the process before did not come to its end
        self.state.method.train()
        raw = None if self.validation.exhausted else self._next(batches)
        while raw is not None:
            if raw["fill"]:
                raw = fill(self, raw, batches)
                if self.stopped:
                    return self.metrics
            self.saver.check()
            if self._between_groups():
                # decided before the steps: if a checkpoint follows, they must not ask the memory for the next recalls
                self.stopped = self.state.stopping.agreed()
            if self.cursor.step == 0:
                self._begin_epoch()
            try:
                self._train_step(raw, batches)
            except Exception as error:
                error.add_note(f"on rank {self.state.context.rank} at step {self.step}, {self.cursor}")
                raise
            if self.cursor.step == 0:
                self._end_epoch()
                if self.validation.exhausted:
                    break
            elif self._checkpoint_due():
                self._save(self._finite_sums(), self._epoch.total_counts())
            if self.stopped and self._between_groups():
                return self.metrics
            raw = self._next(batches)
        if self.cursor.epoch < last and not self.validation.exhausted:
            raise RuntimeError(f"the batches ended at {self.cursor}, before epoch {last}")
        return self.metrics

    def _next(self, batches: Iterator[Raw]) -> Raw | None:
        """The next batch."""
        return self._looked_at.popleft() if self._looked_at else self._read(batches)

    def _read(self, batches: Iterator[Raw]) -> Raw | None:
        """Another batch of the stream. The time it takes counts as waiting for data."""
        began = time.perf_counter()
        raw = next(batches, None)
        for window in (self._window, self._epoch):
            window.waited += time.perf_counter() - began
        return raw

    def _peek(self, batches: Iterator[Raw], count: int) -> list[Raw]:
        """The next ``count`` batches, which `_next` gives later."""
        while len(self._looked_at) < count:
            raw = self._read(batches)
            if raw is None:
                raise RuntimeError(f"the batches ended inside the epoch of {self.cursor}")
            self._looked_at.append(raw)
        return list(islice(self._looked_at, count))

    def leave_out(self, seconds: float) -> None:
        """Leaves out ``seconds`` that were spent on something else than steps."""
        for window in (self._window, self._epoch):
            window.leave_out(seconds)

    def views(self, raw: Raw, segments: tuple[Segment, ...], labelled: tuple[Segment, ...] = ()) -> Views:
        """The ``segments`` of a batch on the device, and those of its ``labelled`` stream; see `make_views`."""
        state = self.state
        return make_views(
            raw,
            segments,
            state.recipes,
            seed=state.seed,
            device=state.context.device,
            labelled=labelled,
            nights=state.nights,
            join=self.join_views,
        )

    def _inputs(self, raw: Raw) -> tuple[Views, Batch]:
        """The method's inputs of this step: the views of its own and of the labelled stream, with ids and labels."""
        state, few = self.state, self.state.segments.labelled
        self._check_place(raw, state.pass_steps or state.steps_per_epoch)
        state.method.config.check_rows(raw["id"], raw["speaker"])
        if few:
            assert state.labelled_steps is not None
            self._check_place(raw["labelled"], state.labelled_steps)
        views = self.views(raw, state.segments.own[self.cursor.epoch], few)
        batch = batch_of(raw, state.context.device, self.step)
        if few:
            batch = replace(batch, labelled=batch_of(raw["labelled"], state.context.device, self.step))
        return views, batch

    def _check_place(self, raw: Raw, steps: int) -> None:
        """Raises RuntimeError if ``raw`` is not the batch of this step in a stream of ``steps`` steps a pass."""
        expected = cycle_position(self.step, steps)
        if Cursor(raw["epoch"], raw["step"]) != expected:
            raise RuntimeError(f"expected the batch of {expected}, got epoch {raw['epoch']} step {raw['step']}")

    def _begin_epoch(self) -> None:
        state, epoch = self.state, self.cursor.epoch
        if self.recaller is not None:
            self.recaller.begin_epoch()
        self.teller.begin_epoch(epoch)
        if state.memory is not None and state.method.config.clusters_before(epoch):
            self._cluster(epoch)
        for parameter in state.method.begin_epoch(epoch, None if state.memory is None else state.memory.centroids):
            self.optimiser.state.pop(parameter, None)

    def _cluster(self, epoch: int) -> None:
        state, began = self.state, time.perf_counter()
        assert state.memory is not None
        metrics = state.memory.refresh(epoch)
        if state.log is not None:
            # logged at the next step: a run that resumes from the checkpoint before clusters again and logs it again
            state.log.write("refresh", self.step + 1, epoch=epoch + 1, **metrics)
        suggested = metrics.get("clusters_suggested")
        told = "" if suggested is None else f" ({suggested:.0f} clusters suggested)"
        self.teller.phase(epoch, "clustered the memory" + told, time.perf_counter() - began)
        self.refreshed = metrics
        self.leave_out(time.perf_counter() - began)

    def _train_step(self, raw: Raw, batches: Iterator[Raw]) -> None:
        state, epoch = self.state, self.cursor.epoch
        views, batch = self._inputs(raw)
        out = self._passes.forward(views)
        recall = self._recalled(out, batch, raw, batches)
        if state.config.verify_every and self.step % state.config.verify_every == 0:
            verify(state.method, views, batch, recall, bf16=state.config.precision == "bf16", step=self.step)
        step = state.method.step(out, batch, recall)
        lr = self._set_rate()
        leaving = self._leaving(step.remember, raw)
        self.optimiser.zero_grad(set_to_none=True)
        self._passes.backward(step.loss)
        self._hand_over(leaving, batches)
        state.method.before_update(epoch)
        clip_gradients(state.config.optimiser, state.method)
        self.optimiser.step()
        state.method.after_step((self.step + 1) / (state.config.epochs * state.steps_per_epoch))
        memory = self.recaller or self.classes
        waited = None if memory is None else memory.answers.waited()
        self._window.add(step, waited)
        self._window.tick()
        self._epoch.add(step, waited)
        if self.step == 0:
            of_memory = UTTERANCE_FIGURES if state.memory is not None else ()
            self._epoch.check(state.best_of_training, of_memory if state.prototypes is None else CLASS_FIGURES)
        self.step += 1
        self._advance()
        self.teller.step(epoch, self.step)
        if self.step % state.config.log_every == 0:
            self._log(lr, epoch)

    def precision(self) -> torch.autocast:
        """The precision of the run, for a forward pass."""
        state = self.state
        return torch.autocast(state.context.device.type, torch.bfloat16, enabled=state.config.precision == "bf16")

    def _recalled(self, out: Outputs, batch: Batch, raw: Raw, batches: Iterator[Raw]) -> Recalled | None:
        state, epoch = self.state, self.cursor.epoch
        if self.classes is not None:
            return self.classes.recall(state.method.consult(out, batch), self.step)
        if self.recaller is None or not state.method.config.recalls(epoch):
            return None
        return self.recaller.recall(epoch, self.cursor.step, raw, partial(self._peek, batches), state.context.device)

    def _leaving(self, remember: Remembered | None, raw: Raw) -> list[Later[Any]]:
        """What goes to the memory of this step. It is on its way to the host."""
        if self.classes is not None:
            assert remember is None or isinstance(remember, ClassRemember)
            return self.classes.leaving(remember, self.step)
        return [to_memory(remember, raw)] if isinstance(remember, Remember) else []

    def _hand_over(self, leaving: list[Later[Any]], batches: Iterator[Raw]) -> None:
        """Gives the memory what this step leaves, once the device has got the backward pass to compute."""
        state, epoch = self.state, self.cursor.epoch
        follows = self._checkpoint_due(self.cursor.step + 1)
        if self.classes is not None:
            self.classes.hand_over(leaving, wait=follows)
        elif self.recaller is not None and state.method.config.remembers(epoch):
            peek = partial(self._peek, batches) if state.method.config.recalls(epoch) and not follows else None
            self.recaller.remember(epoch, self.cursor.step, leaving[0] if leaving else None, peek)

    def _end_epoch(self) -> None:
        state, epoch = self.state, self.cursor.epoch
        sums = self._finite_sums()
        metrics = {**self._epoch.of_sums(sums), **self._epoch.speed(state.config.batch)}
        if state.memory is not None and state.method.config.remembers(epoch - 1) and state.context.rank == 0:
            metrics |= self.refreshed | state.memory.metrics()
        if self.classes is not None and state.context.rank == 0:
            metrics |= self.classes.metrics()
        self.metrics = metrics
        counts = self._epoch.total_counts()
        if state.log is not None:
            state.log.observe("step", self._window.durations)
            state.log.write("epoch", self.step, epoch=epoch, **metrics)
            if counts:
                whole = {name: value.tolist() for name, value in counts.items()}
                state.log.write("classes", self.step, epoch=epoch, names=list(state.method.class_names), **whole)
        self.teller.trained(epoch, self.step, metrics)
        if state.context.rank == 0 and (line := no_figure(state.best_of_training, metrics)):
            state.context.say(line)
        self._save(sums, counts)
        if not self.stopped:  # else the next process does it first
            self.validation.run_if_due()
        state.context.report({"epoch": epoch, "step": self.step, **self.metrics})
        self._window, self._epoch = MetricAccumulator(), MetricAccumulator()

    def _log(self, lr: float, epoch: int) -> None:
        means = self._window.means()
        if not np.isfinite(means["loss"]):
            self._diverged()
            raise UserError(
                f"the loss is {means['loss']} at step {self.step}: training has diverged; lower "
                "training.optimiser.lr, set training.optimiser.clip_norm, or use training.precision=fp32"
            )
        state = self.state
        speed, durations = self._window.speed(state.config.batch), self._window.durations
        self._window = MetricAccumulator()
        if state.log is not None:
            state.log.observe("step", durations)
            state.log.write(
                "step", self.step, epoch=epoch, lr=lr, **speed, **device_memory(state.context.device), **means
            )
        self.teller.loss(epoch, self.step, means["loss"], speed)

    def _diverged(self) -> None:
        if self.state.log is not None:
            self.state.log.write("event", self.step, event="diverged")

    def _finite_sums(self) -> dict[str, Tensor]:
        """The epoch's sums so far. Raises `UserError` on every rank if the run has diverged: it is not saved then."""
        sums = self._epoch.sums()
        weights = nn.utils.get_total_norm([p.detach() for p in self.state.method.parameters()])
        if not torch.isfinite(weights) or not all(torch.isfinite(value) for value in sums.values()):
            self._diverged()
            raise UserError(
                f"the loss or the weights are not finite by step {self.step}: training has diverged, nothing was "
                "saved; lower training.optimiser.lr, set training.optimiser.clip_norm, or use training.precision=fp32"
            )
        return sums

    def _save(self, sums: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        """Begins to write a checkpoint, see `Saver`; waits before until the one before is written."""
        state = self.state
        began = time.perf_counter()
        states = collectives.gather_objects(resuming.random_state(state.context.device))
        self.await_saver()
        if state.context.rank == 0:
            if state.log is not None:
                state.log.flush()  # before the save: a resumed run never writes the lines before its checkpoint again
            at, standing = self.cursor, dict(self.validation.standing)
            meta = Meta(self.step, at.epoch, at.step, state.architecture, self.metrics, validated=standing)
            self.saver.start(meta, resuming.content(self, states, sums, counts), state.checkpointable)
        self.leave_out(time.perf_counter() - began)

    def await_saver(self) -> None:
        """Waits until no checkpoint is being written. Every rank must call this."""
        collectives.wait_for_rank_0(self.saver.idle)
        self.saver.check()

    def _set_rate(self) -> float:
        config = self.state.config
        lr = learning_rate(
            config.optimiser.schedule,
            config.optimiser.lr,
            step=self.step,
            steps_per_epoch=self.state.steps_per_epoch,
            epochs=config.epochs,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        return lr

    def _advance(self) -> None:
        epoch, step = self.cursor.epoch, self.cursor.step + 1
        self.cursor = Cursor(epoch + 1, 0) if step == self.state.steps_per_epoch else Cursor(epoch, step)

    def _between_groups(self) -> bool:
        """Whether a group of steps has ended, see `Recaller`; only then there may be a checkpoint."""
        return self.recaller is None or self.recaller.ends_group(self.cursor.step)

    def _checkpoint_due(self, step: int | None = None) -> bool:
        """Whether a checkpoint follows once ``step`` batches of the epoch are done (None: those done so far)."""
        every, ahead = self.state.config.checkpoints.every_steps, self.state.ahead
        done = self.cursor.step if step is None else step
        if done == self.state.steps_per_epoch:
            return True
        if self.recaller is not None and not self.recaller.ends_group(done):
            return False
        return self.stopped or (every > 0 and done // every > (done - ahead) // every)

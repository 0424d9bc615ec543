"""The pass that fills the memory of utterances before an epoch: inference over the corpus, one batch after the other.

While the device computes a batch, the rows of the batch before it go to the memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from rayssl import collectives
from rayssl.memory.utterances.exchange import RememberArrays
from rayssl.training.inputs import Later, Raw, to_memory
from rayssl.training.meters import MetricAccumulator

if TYPE_CHECKING:
    from rayssl.training.loop import Loop


@torch.no_grad()
def fill(loop: Loop, raw: Raw, batches: Iterator[Raw]) -> Raw:
    """Fills the memory by one pass, from ``raw`` on; returns the first batch to train on.

    It may return earlier, when all ranks have agreed to stop.
    """
    state, epoch, began, done = loop.state, loop.cursor.epoch, time.perf_counter(), 0
    ticks, recaller = MetricAccumulator(), loop.recaller
    if recaller is None or loop.cursor.step != 0:
        raise RuntimeError(f"a batch to fill a memory with came at {loop.cursor}")
    training = [module for module in state.method.modules() if module.training]
    state.method.eval()
    # a resumed run has rank 0's everywhere; without this, each rank's own statistics would fill the memory
    collectives.share_buffers(state.method)
    before: Later[RememberArrays] | None = None
    while raw["fill"] and not loop.stopped:
        # no checkpoint inside a pass: the one before the pass is as good as one with half of it
        loop.stopped = state.stopping.agreed()
        views = loop.views(raw, state.segments.fill[epoch])
        with loop.precision():
            leaving = to_memory(state.method.fill(views), raw)
        if before is not None:
            recaller.fill(epoch, before)
        before = leaving
        raw, done = next(batches), done + 1
        ticks.tick()
        if state.log is not None and done % state.config.log_every == 0:
            state.log.observe("fill", ticks.durations)
            ticks = MetricAccumulator()
        loop.teller.filling(epoch, done)
    if before is not None:
        recaller.fill(epoch, before)
    recaller.filled()
    for module in training:  # one by one: a part that is frozen in eval mode stays in it
        module.training = True
    loop.teller.phase(epoch, "filled the memory", time.perf_counter() - began)
    loop.leave_out(time.perf_counter() - began)
    return raw

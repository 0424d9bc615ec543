"""The streams of a run: which rows they have, how many batches a pass makes, and from where on they are read.

A method's own stream is passed over once an epoch, or goes round and round where ``training.epoch_steps`` says what an
epoch is; the labelled one always goes round. Where they are follows from the number of steps done, so there is nothing
to save.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rayssl.batches import plan
from rayssl.batches.plan import Cursor, ReadUnit
from rayssl.batches.selection import Role, Selection, selection
from rayssl.data.shards import Manifest


@dataclass(frozen=True)
class Stream:
    """``batch`` rows a step of all ranks, ``pass_steps`` batches a pass, ``epoch_steps`` an epoch of the training.

    ``wrap``: a pass ends with a whole batch, filled up from its beginning. ``cycles``: passes are not epochs.
    """

    batch: int
    pass_steps: int
    epoch_steps: int
    selection: Selection | None = None
    wrap: bool = False
    cycles: bool = False

    def units(
        self,
        manifest: Manifest,
        *,
        seed: int,
        start: Cursor,
        epoch_count: int,
        unit_rows: int,
        fills: Collection[int] = (),
    ) -> Iterator[ReadUnit]:
        """The units of all batches from ``start`` (of the training) to the end of its last epoch."""
        how: dict[str, Any] = {"seed": seed, "batch": self.batch, "unit_rows": unit_rows}
        how |= {"selection": self.selection, "wrap": self.wrap}
        if not self.cycles:
            return plan.plan(manifest, epochs=epoch_count, start=start, fills=fills, **how)
        done = start.epoch * self.epoch_steps + start.step
        return plan.plan_steps(manifest, start_step=done, steps=epoch_count * self.epoch_steps - done, **how)


def own_stream(
    manifest: Manifest, uri: str, role: Role, *, batch: int, epoch_steps: int, split: str | None, class_aware: bool
) -> Stream:
    """The stream that a method's own segments are cut from, of the rows of ``split`` that have ``role``.

    Raises `CorpusError` where it would be empty.
    """
    labelled = role == "labelled"
    chosen = None
    if split is not None:
        chosen = selection(manifest, uri, split, role, class_aware=class_aware and labelled)
    steps = plan.steps_per_epoch(manifest.rows, batch, chosen, wrap=labelled)
    return Stream(batch, steps, epoch_steps or steps, chosen, labelled, cycles=epoch_steps > 0)


def labelled_stream(
    manifest: Manifest, uri: str, *, batch: int, epoch_steps: int, split: str | None, class_aware: bool
) -> Stream:
    """The labelled stream beside a method's own one, which has ``epoch_steps`` steps an epoch."""
    chosen = selection(manifest, uri, split, "labelled", class_aware=class_aware)
    steps = plan.steps_per_epoch(manifest.rows, batch, chosen, wrap=True)
    return Stream(batch, steps, epoch_steps, chosen, wrap=True, cycles=True)


def joined(own: Iterator[dict[str, Any]], labelled: Iterator[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    """The batches of a method's own stream, each to be trained on with one of the labelled ones under ``labelled``."""
    for raw in own:
        if labelled is not None and not raw["fill"]:
            raw["labelled"] = next(labelled)
        yield raw

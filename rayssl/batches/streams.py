"""The streams of a run: their rows, the number of batches in a pass, and the position from which they are read.

The method's own stream is read once per epoch. If ``training.epoch_steps`` sets the length of an epoch, it cycles
instead. The labelled stream always cycles. The position in a stream follows from the number of steps done, so nothing
has to be saved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rayssl.batches import plan
from rayssl.batches.plan import Cursor, ReadUnit
from rayssl.batches.selection import Role, Selection, selection
from rayssl.batches.sequences import Sequences, sequences
from rayssl.data.shards import Manifest


@dataclass(frozen=True)
class Stream:
    """One stream of batches.

    ``batch``: rows per step, over all ranks; of a corpus of nights sequences of ``length`` epochs. ``pass_steps``:
    batches per pass over the stream's rows. ``epoch_steps``: batches per epoch of the training. ``wrap``: the last
    batch of a pass is filled with the first rows of the pass. ``cycles``: the stream starts again independently of
    epochs.
    """

    batch: int
    pass_steps: int
    epoch_steps: int
    selection: Selection | None = None
    wrap: bool = False
    cycles: bool = False

    @property
    def length(self) -> int:
        """The number of epochs of sleep in a sequence; 1 if the stream gives utterances."""
        return self.selection.length if isinstance(self.selection, Sequences) else 1

    def unit_steps(self, unit_rows: int) -> int:
        """See `rayssl.batches.plan.unit_steps`; of a stream of sequences, ``unit_rows`` counts epochs of sleep."""
        return plan.unit_steps(self.batch, max(1, unit_rows // self.length))

    def units(
        self,
        manifest: Manifest,
        *,
        seed: int,
        start: Cursor,
        epoch_count: int,
        unit_rows: int,
        shuffle_shards: int,
        ranks: int,
        fills: Collection[int] = (),
    ) -> Iterator[ReadUnit]:
        """The units of all batches from ``start`` to the end; ``start`` counts epochs and steps of the training."""
        unit_rows = max(1, unit_rows // self.length)
        how: dict[str, Any] = {"seed": seed, "batch": self.batch, "unit_rows": unit_rows, "ranks": ranks}
        how |= {"shuffle_shards": shuffle_shards, "selection": self.selection, "wrap": self.wrap}
        if not self.cycles:
            return plan.plan(manifest, epochs=epoch_count, start=start, fills=fills, **how)
        done = start.epoch * self.epoch_steps + start.step
        return plan.plan_steps(manifest, start_step=done, steps=epoch_count * self.epoch_steps - done, **how)


def own_stream(
    manifest: Manifest,
    uri: str,
    role: Role,
    *,
    batch: int,
    epoch_steps: int,
    split: str | None,
    class_aware: bool,
    length: int | None = None,
) -> Stream:
    """The method's own stream, from which `MethodConfig.segments` are cut: the rows of ``split`` that have ``role``.

    ``epoch_steps`` is 0 if an epoch is a pass. ``length``: the number of epochs of a sequence, if the stream gives
    sequences. Raises `CorpusError` if the stream would be empty.
    """
    labelled = role == "labelled"
    chosen: Selection | None = None
    if length is not None:
        chosen = sequences(manifest, uri, split, role, length)
    elif split is not None:
        chosen = selection(manifest, uri, split, role, class_aware=class_aware and labelled)
    steps = plan.steps_per_epoch(manifest.rows, batch, chosen, wrap=labelled)
    return Stream(batch, steps, epoch_steps or steps, chosen, labelled, cycles=epoch_steps > 0)


def labelled_stream(
    manifest: Manifest,
    uri: str,
    *,
    batch: int,
    epoch_steps: int,
    split: str | None,
    class_aware: bool,
    length: int | None = None,
) -> Stream:
    """The labelled stream that runs beside a method's own stream, which has ``epoch_steps`` steps per epoch."""
    if length is not None:
        chosen: Selection = sequences(manifest, uri, split, "labelled", length)
    else:
        chosen = selection(manifest, uri, split, "labelled", class_aware=class_aware)
    steps = plan.steps_per_epoch(manifest.rows, batch, chosen, wrap=True)
    return Stream(batch, steps, epoch_steps, chosen, wrap=True, cycles=True)


def joined(own: Iterator[dict[str, Any]], labelled: Iterator[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    """The batches of a method's own stream. Each training batch gets a labelled batch under the key ``labelled``."""
    for raw in own:
        if labelled is not None and not raw["fill"]:
            raw["labelled"] = next(labelled)
        yield raw

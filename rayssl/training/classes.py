"""The memory of classes as a rank uses it: its queues are held on the device, and the owner is told of each step.

A step needs prototypes that include its own labelled rows, of all ranks. To ask the owner for them would be a round
trip inside the step, for which the host and the device wait. Instead, ranks gather the rows on the device, and each
puts them into its own copy of the queues, in the same order and so with the same bits. What the owner of the state,
the actors, gets of the step leaves the device while the backward pass is computed. The owner writes the checkpoints;
from them the copies are filled again when a run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rayssl import collectives
from rayssl.memory.classes.memory import ClassMemory, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import ClassRecall, ClassRemember
from rayssl.training import pieces
from rayssl.training.context import ClassClient
from rayssl.training.inputs import Later, to_classes
from rayssl.training.pieces import Records
from rayssl.training.recalling import Answers


class ClassQueues:
    """`rayssl.memory.classes.memory.ClassMemory` in tensors on ``device``, without its metrics. Nothing here waits.

    The answers are the same, except that the sums of a mean have another order: it is rounded from float64, so it may
    differ from the memory's in the last bit of float32. It depends only on the rows in the queues.
    """

    def __init__(self, settings: ClassSettings, device: torch.device) -> None:
        self._settings = settings
        classes, length = settings.classes, settings.length
        # of all classes, one after the other; the last row takes what no queue keeps
        self._rows = torch.zeros(classes * length + 1, settings.dim, device=device)
        self._pushed = torch.zeros(classes, dtype=torch.int64, device=device)
        self._window = 0  # number of the open one
        self._open = torch.zeros(classes, dtype=torch.int64, device=device)
        self._closed = torch.zeros_like(self._open)  # the counts of the window before

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor) -> None:
        """Puts ``features [B, D]`` into the queues of ``labels [B]``, in order. Rows with the label -1 stay out.

        So do rows that are not finite, and labels of no class (the owner of the state raises an error for them).
        """
        classes, length = self._settings.classes, self._settings.length
        rows = features.float()
        finite = (rows.abs() <= torch.finfo(torch.float32).max).all(dim=1)
        valid = (labels >= 0) & (labels < classes) & finite
        own = labels.clamp(0, classes - 1)
        each = ((own[:, None] == torch.arange(classes, device=own.device)) & valid[:, None]).long()
        pushed = each.sum(dim=0)
        nth = each.cumsum(dim=0).gather(1, own[:, None])[:, 0] - 1  # of its class in this call
        stays = valid & (nth >= pushed[own] - length)  # the others would be overwritten by the last of this call
        slots = own * length + (self._pushed[own] + nth) % length
        self._rows.index_copy_(0, torch.where(stays, slots, classes * length), rows)
        self._pushed += pushed

    def count(self, counts: Tensor, step: int) -> None:
        """Adds ``counts [C]``, how often each class was predicted in ``step``, to the window of the step."""
        self._open_at(step)
        self._open = self._open + counts

    @torch.no_grad()
    def recall(self, step: int) -> ClassRecall:
        """The prototypes and the newest rows by the queues as they are, and the histogram that ``step`` sees."""
        classes, length, anchors = self._settings.classes, self._settings.length, self._settings.anchors
        self._open_at(step)
        queues = self._rows[:-1].view(classes, length, -1)
        sizes = self._pushed.clamp_max(length)
        # places that are not filled are zero; all classes in one sum of one shape, so that its order never changes
        means = (queues.sum(dim=1, dtype=torch.float64) / sizes.clamp_min(1)[:, None]).float()
        filled, ages = self._pushed.clamp_max(anchors), torch.arange(anchors, device=queues.device)
        slots = (self._pushed[:, None] - 1 - ages) % length
        newest = queues[torch.arange(classes, device=queues.device)[:, None], slots]
        newest = newest.masked_fill((ages >= filled[:, None])[..., None], 0)
        return ClassRecall(means, means.any(dim=1), self._closed, newest, filled)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from the ``state_dict`` of a `ClassMemory` of all classes."""
        counts = state["windows.counts"]
        self._rows[:-1] = torch.from_numpy(state["classes.rows"]).flatten(0, 1)
        self._pushed.copy_(torch.from_numpy(state["classes.pushed"]))
        self._window = int(state["windows.open"])
        self._open, self._closed = (torch.tensor(part, device=self._open.device) for part in counts[:2])

    def _open_at(self, step: int) -> None:
        """Opens the window of ``step``, which is never earlier than the one before."""
        passed = step // self._settings.window - self._window
        if passed > 0:  # skipped windows are closed without counts
            self._closed = self._open if passed == 1 else torch.zeros_like(self._open)
            self._open = torch.zeros_like(self._open)
            self._window += passed


class HeldClasses:
    """The queues of one rank on ``device``, and the ``owner`` of their state. All ranks make the same calls."""

    def __init__(self, settings: ClassSettings, owner: ClassClient, device: torch.device) -> None:
        self._settings, self._owner = settings, owner
        self.answers = Answers(owner)
        self._queues = ClassQueues(settings, device)
        self._found = ClassRemember()  # what the step under way gives the memory before it is answered
        self._sent: Future[None] | None = None

    def recall(self, found: ClassRemember, step: int) -> ClassRecall:
        """The answer for ``step``, after the memory has what all ranks have ``found`` in it."""
        self._found = found
        self._push(found)
        return self._queues.recall(step)

    def leaving(self, remember: ClassRemember | None, step: int) -> list[Later[ClassRememberArrays]]:
        """What goes to the owner of ``step``: what was found, and what the method ``remember``s. It is on its way."""
        remember = ClassRemember() if remember is None else remember
        if remember.counts is not None:
            self._queues.count(collectives.sum_over_ranks(remember.counts), step)
        going = [to_classes(replace(self._found, counts=remember.counts), step)]
        if remember.features is not None:
            self._push(remember)
            going.append(to_classes(replace(remember, counts=None), step))
        self._found = ClassRemember()
        return going

    def hand_over(self, leaving: list[Later[ClassRememberArrays]], *, wait: bool) -> None:
        """Gives the owner what is ``leaving``. Waits until it is applied if it must, for a checkpoint that follows."""
        for each in leaving:
            if self._sent is not None:
                self.answers.of(self._sent)
            self._sent = self._owner.remember(each())
        if wait and self._sent is not None:
            self.answers.of(self._sent)
            self._sent = None

    def metrics(self) -> dict[str, float]:
        """The figures of the owner."""
        return self._owner.metrics()

    def restore(self, folder: str, records: Records) -> None:
        """Fills the queues from a checkpoint that the owner has accepted. Every rank must call this."""

        def read() -> dict[str, np.ndarray]:
            memory = ClassMemory(self._settings)
            memory.restore(pieces.read_index(folder, records), pieces.reader(folder, records))
            return memory.state_dict()

        self._queues.load(collectives.on_rank_0(read))

    def _push(self, found: ClassRemember) -> None:
        if found.features is not None and found.labels is not None:
            self._queues.push(collectives.gather(found.features.detach()), collectives.gather(found.labels))

"""Turns a batch of the data tasks into the method's inputs on the device, and its outputs into memory writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rayssl import transfer
from rayssl.batches.plan import TURN_BIT
from rayssl.memory.classes import memory
from rayssl.memory.utterances import exchange
from rayssl.methods.base import Batch, ClassRemember, Remember, View, Views
from rayssl.random import draws, draws_torch
from rayssl.training.nights import NightInput
from rayssl.views.augment import Augment
from rayssl.views.recipes import Segment

T = TypeVar("T")
Later: TypeAlias = Callable[[], T]  # a value that is on its way to the host; the call waits for it
Raw: TypeAlias = dict[str, Any]  # see `rayssl.views.reading.read`
_VIEW = 17  # the purpose of random draws for distorting and augmenting views


def make_views(
    raw: Raw,
    segments: Sequence[Segment],
    recipes: nn.ModuleDict,
    *,
    seed: int,
    device: torch.device,
    first: int = 0,
    nights: NightInput | None = None,
) -> Views:
    """The segments of a batch on the device, each after its recipe's module, which draws by keys of (seed, epoch, id).

    Segments with the recipe ``none`` stay unchanged and have no keys. If an utterance comes several times in an epoch,
    each turn has keys of its own. Each segment has keys of its own too: they depend on its number, counted from
    ``first``. ``nights``: makes pictures of the epochs of sequences, whose keys are those of their first epochs.
    """
    ids = _turns(raw, nights, device)
    host_ids = _turns({name: raw[name] for name in ("id", "turn")}, nights, torch.device("cpu"))
    views = {}
    for index, segment in enumerate(segments, start=first):
        given = _tensor(raw, segment.name, device)
        wave = given.float() / 32768.0 if nights is None else nights(given)
        keys = None
        if segment.recipe != "none":
            purpose, recipe = draws.fold(seed, _VIEW, raw["epoch"], index), recipes[segment.recipe]
            keys = draws_torch.keys_torch(purpose, ids)
            also = (draws_torch.keys_torch(purpose, host_ids),) if isinstance(recipe, Augment) else ()
            wave = recipe(wave, keys, *also)
        views[segment.name] = View(wave, keys)
    return views


def _turns(raw: Raw, nights: NightInput | None, device: torch.device) -> Tensor:
    """A number for each turn of each utterance, int64 ``[B]``; for sequences those of their first epochs."""
    ids = _column(raw, "id", device) + (_column(raw, "turn", device) << TURN_BIT)
    return ids if nights is None else ids.view(-1, nights.length)[:, 0]


def _tensor(raw: Raw, name: str, device: torch.device) -> Tensor:
    """An entry of the batch on the device. `rayssl.training.feed` may have copied it there already."""
    there = raw.get("placed")
    return there[name] if there is not None else torch.from_numpy(raw[name]).to(device)


def _column(raw: Raw, name: str, device: torch.device) -> Tensor:
    return _tensor(raw, name, device).long()


def batch_of(raw: Raw, device: torch.device, step: int) -> Batch:
    """The ids and labels of the batch of ``step`` (counted from 0) on the device."""
    names = ("id", "speaker", "recording", "label", "truth")
    ids, speakers, recordings, labels, truth = (_column(raw, name, device) for name in names)
    return Batch(ids, speakers, recordings, labels, raw["epoch"], truth, step)


def to_memory(remember: Remember, raw: Raw) -> Later[exchange.RememberArrays]:
    """What the method remembers of the batch, as the memory of utterances takes it: NumPy, with ids and labels.

    It is on its way to the host. Call the result, which waits for it, after the device has got its next work.
    """
    rows = (None if each is None else each.detach().float() for each in (remember.references, remember.positives))
    fetched = transfer.fetch(*rows)
    columns = {"ids": raw["id"], "speakers": raw["speaker"], "recordings": raw["recording"]}

    def arrays() -> exchange.RememberArrays:
        references, positives = fetched.arrays()
        return exchange.RememberArrays(references=references, positives=positives, **columns)

    return arrays


def to_classes(remember: ClassRemember, step: int) -> Later[memory.ClassRememberArrays]:
    """What the method remembers of the classes in ``step``, as the memory of classes takes it: NumPy.

    Rows with the label -1 (unknown: an epoch of sleep that nobody scored) are left out here. So ranks may send
    different numbers of rows, though each method gives B of them. Any other label that is no class is an error. It is
    on its way to the host, as in `to_memory`.
    """
    features = None if remember.features is None else remember.features.detach().float()
    fetched = transfer.fetch(features, remember.labels, remember.counts)

    def arrays() -> memory.ClassRememberArrays:
        rows, given, counts = fetched.arrays()
        labels = np.zeros(0, np.int64) if given is None else given
        known = labels != -1
        if not known.all():
            labels, rows = labels[known], None if rows is None else rows[known]
        return memory.ClassRememberArrays(step, rows, labels, counts)

    return arrays

"""Turns a batch of the data tasks into the method's inputs on the device, and its outputs into memory writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

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
_LABELLED = 100  # number of the first segment of the labelled stream, for its draws
# Numbers that a call of a recipe takes at most, if it takes several segments: 256 MiB, and some six times that while
# the recipe works (computed, for the spectra of the longest rooms).
_AT_ONCE = 1 << 26


class _Plain(NamedTuple):
    """A segment before its recipe, and what makes its keys.

    ``wave``: int16 samples ``[B, T]``, or pictures ``[B, N, F, frames]``. ``ids`` int64 ``[B]``: see `_turns`;
    ``host_ids``: the same on the host.
    """

    name: str
    recipe: str
    wave: Tensor
    purpose: int
    ids: Tensor
    host_ids: Tensor


def make_views(
    raw: Raw,
    segments: Sequence[Segment],
    recipes: nn.ModuleDict,
    *,
    seed: int,
    device: torch.device,
    labelled: Sequence[Segment] = (),
    nights: NightInput | None = None,
    join: bool | None = None,
) -> Views:
    """The segments of a batch on the device, each after its recipe's module, which draws by keys of (seed, epoch, id).

    Segments with the recipe ``none`` stay unchanged and have no keys. If an utterance comes several times in an epoch,
    each turn has keys of its own. Each segment has keys of its own too: they depend on its number.

    Args:
        raw, segments: the batch of the method's own stream, see `rayssl.views.reading.read`, and what to take of it.
        recipes: by name; each draws for a row by the row's key alone.
        seed, device: of the run.
        labelled: segments of ``raw["labelled"]``, the batch of the labelled stream. Their names are other ones.
        nights: makes pictures of the epochs of sequences, whose keys are those of their first epochs.
        join: whether segments of one recipe and one length go through it in one call. None: on a GPU only. There a call
            is some 200 launches, whatever its number of rows; on a CPU there are none to save. Keys are the same either
            way; values differ by rounding at most.
    """
    plain = _plain(raw, segments, 0, seed, device, nights)
    if labelled:
        plain += _plain(raw["labelled"], labelled, _LABELLED, seed, device, nights)
    join = device.type == "cuda" if join is None else join
    views: Views = {}
    for call in _calls(plain) if join else [[each] for each in plain]:
        views |= _after(call, recipes)
    return {each.name: views[each.name] for each in plain}


def _plain(
    raw: Raw, segments: Sequence[Segment], first: int, seed: int, device: torch.device, nights: NightInput | None
) -> list[_Plain]:
    """The ``segments`` of a batch, numbered from ``first``.

    Pictures are made here, for each segment alone: of sound, they are much smaller than what they are made of.
    """
    ids = _turns(raw, nights, device)
    host_ids = _turns({name: raw[name] for name in ("id", "turn")}, nights, torch.device("cpu"))
    made = []
    for index, segment in enumerate(segments, start=first):
        given = _tensor(raw, segment.name, device)
        purpose = draws.fold(seed, _VIEW, raw["epoch"], index)
        wave = given if nights is None else nights(given)
        made.append(_Plain(segment.name, segment.recipe, wave, purpose, ids, host_ids))
    return made


def _calls(plain: list[_Plain]) -> list[list[_Plain]]:
    """The segments that share a recipe and the shape of a row, of at most `_AT_ONCE` numbers, for one call each.

    What has no recipe stays alone: to join it would only be a copy more.
    """
    calls: list[list[_Plain]] = []
    last: dict[tuple[str, torch.Size], list[_Plain]] = {}
    for each in plain:
        kind = each.recipe, each.wave.shape[1:]
        call = last.get(kind)
        if call is None or each.recipe == "none" or sum(e.wave.numel() for e in (*call, each)) > _AT_ONCE:
            call = last[kind] = []
            calls.append(call)
        call.append(each)
    return calls


def _after(call: list[_Plain], recipes: nn.ModuleDict) -> Views:
    """The views of segments with one recipe, which is called once for all of them. They are parts of one tensor."""
    wave = call[0].wave if len(call) == 1 else torch.cat([each.wave for each in call])
    if wave.dtype == torch.int16:
        wave = wave / 32768.0  # of integers it gives float32, in one launch
    if call[0].recipe == "none":
        return {each.name: View(wave, None) for each in call}
    recipe = recipes[call[0].recipe]
    keys = draws_torch.keys_joined([(each.purpose, each.ids) for each in call])
    also: tuple[Tensor, ...] = ()
    if isinstance(recipe, Augment):
        also = (draws_torch.keys_joined([(each.purpose, each.host_ids) for each in call]),)
    sizes = [len(each.ids) for each in call]
    parts = zip(recipe(wave, keys, *also).split(sizes), keys.split(sizes), strict=True)
    return {each.name: View(*part) for each, part in zip(call, parts, strict=True)}


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

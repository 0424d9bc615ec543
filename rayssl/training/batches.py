"""From a batch as the data tasks make it to what the method sees on the device, and back to what the memory keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from rayssl import draws, draws_torch
from rayssl.memory import exchange
from rayssl.methods.base import Batch, Remember, View, Views
from rayssl.views.recipes import Segment

Raw: TypeAlias = dict[str, Any]  # see `rayssl.views.epochs.read`
_VIEW = 17  # purpose of the draws made for distorting and augmenting views


def make_views(
    raw: Raw, segments: Sequence[Segment], recipes: nn.ModuleDict, *, seed: int, epoch: int, device: torch.device
) -> Views:
    """The segments of a batch on the device, each through its recipe's module, under keys of (seed, epoch, id).

    Those of recipe ``none`` stay as they are and have no keys.
    """
    ids = torch.tensor(raw["id"]).to(device)
    views = {}
    for index, segment in enumerate(segments):
        wave = torch.tensor(raw[segment.name]).to(device).float() / 32768.0
        keys = None
        if segment.recipe != "none":
            keys = draws_torch.keys_torch(draws.fold(seed, _VIEW, epoch, index), ids)
            wave = recipes[segment.recipe](wave, keys)
        views[segment.name] = View(wave, keys)
    return views


def batch_of(raw: Raw, device: torch.device) -> Batch:
    """Ids and labels of the batch."""
    columns = {name: torch.tensor(raw[name]).to(device).long() for name in ("id", "speaker", "recording", "label")}
    return Batch(columns["id"], columns["speaker"], columns["recording"], columns["label"], raw["epoch"])


def to_memory(remember: Remember, raw: Raw) -> exchange.Remember:
    """What a method wants remembered of the batch, as the memory takes it: NumPy, with ids and labels."""
    references, positives = (
        None if rows is None else rows.detach().float().cpu().numpy()
        for rows in (remember.references, remember.positives)
    )
    return exchange.Remember(
        ids=raw["id"],
        references=references,
        positives=positives,
        speakers=raw["speaker"],
        recordings=raw["recording"],
    )

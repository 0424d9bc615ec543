"""Brings a rank's packed batches to its device, one batch ahead of the step, in a thread of its own.

On a GPU the shipped samples are copied from pinned memory on a side stream, and the segments are cut there. On the CPU
they are cut by NumPy. Both give the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayssl import transfer
from rayssl.training.ahead import ReadAhead
from rayssl.views.packed import Packed

_AHEAD = 1  # batches on the device besides the one that is trained on


def placed(rows: Iterator[Packed], device: torch.device) -> Iterator[dict[str, Any]]:
    """The batches of ``rows`` in order, see `rayssl.views.reading.read`.

    On a GPU each has the entry ``placed`` too: its segments (int16 ``[B, samples]``) and columns as tensors there, by
    name; they may be used on the current stream at once. The segments are not in NumPy then. What the thread raises is
    raised here.
    """
    if device.type != "cuda":
        with ReadAhead(cut(rows), _AHEAD, "rayssl-feed") as batches:
            yield from batches
        return
    with ReadAhead(_copied(rows, device), _AHEAD, "rayssl-feed") as made:
        for raw, ready in made:
            current = torch.cuda.current_stream(device)
            current.wait_event(ready)
            for tensor in raw["placed"].values():
                tensor.record_stream(current)  # so that its memory is not reused before the step is done
            yield raw


def cut(rows: Iterator[Packed]) -> Iterator[dict[str, Any]]:
    """The batches of ``rows`` with their segments cut by NumPy, without a thread."""
    for row in rows:
        yield from row.batches()


def _copied(rows: Iterator[Packed], device: torch.device) -> Iterator[tuple[dict[str, Any], torch.cuda.Event]]:
    """Each batch, copied on a stream of its own, and the event after which it is there."""
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    for row in rows:
        for batch in row.split():
            with torch.cuda.stream(stream):
                raw = batch.facts() | {"placed": on_device(batch, device)}
                ready = torch.cuda.Event()
                ready.record(stream)
            yield raw, ready


def on_device(batch: Packed, device: torch.device) -> dict[str, Tensor]:
    """The segments and columns of one batch as tensors on ``device``, by name; copied without waiting."""
    pcm = _copy(batch.pcm, device)
    starts, ends = _copy(batch.starts, device).long(), _copy(batch.ends, device)
    first = torch.cat([ends.new_zeros(1), ends[:-1]])
    lengths = ends - first
    found = {name: _copy(column, device).long() for name, column in batch.columns.items()}
    for j, (name, size) in enumerate(batch.segments.items()):
        at = starts[:, j, None] + torch.arange(size, device=device)
        # an utterance shorter than the segment is repeated from its beginning
        found[name] = pcm[first[:, None] + at % lengths[:, None]]
    return found


def _copy(array: np.ndarray, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return torch.from_numpy(np.ascontiguousarray(array).copy())
    return transfer.pinned(array).to(device, non_blocking=True)

"""Brings a rank's packed batches to its device, one batch ahead of the step.

On a GPU the shipped samples are copied from pinned memory on a side stream, and the segments are cut there. On the CPU
they are cut by NumPy. Both give the same samples.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayssl.views.packed import Packed

_AHEAD = 1  # batches on the device besides the one that is trained on


def placed(rows: Iterator[Packed], device: torch.device) -> Iterator[dict[str, Any]]:
    """The batches of ``rows`` in order, see `rayssl.views.reading.read`.

    On a GPU each has the entry ``placed`` too: its segments (int16 ``[B, samples]``) and columns as tensors there, by
    name; they may be used on the current stream at once. The segments are not in NumPy then. Another thread prepares
    one batch in advance; what it raises is raised here.
    """
    if device.type != "cuda":
        for row in rows:
            yield from row.batches()
        return
    feeder = _Feeder(rows, device)
    try:
        yield from feeder.batches()
    finally:
        feeder.stop()


class _Feeder:
    """A thread that copies batches to ``device`` on a stream of its own."""

    def __init__(self, rows: Iterator[Packed], device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._stream = torch.cuda.Stream(device)
        self._made: Queue[Any] = Queue(_AHEAD)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rayssl-feed", daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                made = self._made.get(timeout=1.0)
            except Empty:
                continue
            if made is None:
                return
            if isinstance(made, BaseException):
                raise made
            raw, ready = made
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            for tensor in raw["placed"].values():
                tensor.record_stream(current)  # so that its memory is not reused before the step is done
            yield raw

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            torch.cuda.set_device(self._device)
            for row in self._rows:
                for batch in row.split():
                    if not self._put(self._copied(batch)):
                        return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _copied(self, batch: Packed) -> tuple[dict[str, Any], torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            raw = batch.facts() | {"placed": on_device(batch, self._device)}
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return raw, ready

    def _put(self, made: Any) -> bool:
        while not self._over.is_set():
            try:
                self._made.put(made, timeout=0.1)
            except Full:
                continue
            return True
        return False


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
    array = np.ascontiguousarray(array)
    if device.type != "cuda":
        return torch.from_numpy(array.copy())
    pinned = torch.empty(array.shape, dtype=_TORCH[array.dtype.type], pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)


_TORCH = {np.int16: torch.int16, np.int32: torch.int32, np.int64: torch.int64}

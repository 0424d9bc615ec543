"""Copies between the host and a GPU for which neither of them waits: through pinned memory, on streams of their own.

On the CPU there is nothing to copy. The same calls return at once then, so that there is one path for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor


class Fetched:
    """Tensors on their way to the host, see `fetch`."""

    def __init__(self, tensors: tuple[Tensor | None, ...], copied: torch.cuda.Event | None) -> None:
        self._tensors, self._copied = tensors, copied

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """The values, in the order of `fetch`. Waits for these copies alone, not for what the device computes since.

        Arrays of CPU tensors share their memory.
        """
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return tuple(None if tensor is None else tensor.numpy() for tensor in self._tensors)


def fetch(*tensors: Tensor | None) -> Fetched:
    """Begins to copy ``tensors``, all on one device and without their gradients, to the host. Does not wait.

    Call `Fetched.arrays` only after the device has got its next work. Do not change the tensors before.
    """
    given = [None if tensor is None else tensor.detach() for tensor in tensors]
    device = next((tensor.device for tensor in given if tensor is not None), torch.device("cpu"))
    if device.type == "cpu":
        return Fetched(tuple(given), None)
    if device.type != "cuda":
        return Fetched(tuple(None if tensor is None else tensor.cpu() for tensor in given), None)
    given = [None if tensor is None else tensor.contiguous() for tensor in given]
    stream, copied = _stream(device, "to the host"), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        hosts = tuple(None if tensor is None else _copied(tensor, stream) for tensor in given)
        copied.record(stream)
    return Fetched(hosts, copied)


def fetch_each(results: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The values of ``results``, in their order; each is given once the next one has been launched.

    So a GPU computes the next result while the host waits for this one, and while the host prepares the one after it.
    """
    before: Fetched | None = None
    for result in results:
        launched = fetch(result)
        if before is not None:
            yield _only(before)
        before = launched
    if before is not None:
        yield _only(before)


def _only(fetched: Fetched) -> np.ndarray:
    (values,) = fetched.arrays()
    assert values is not None
    return values


def _copied(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)  # its memory is not used again before it is copied
    return host


def send(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A copy of ``values``, which lie on the host, on ``device``. Does not wait; the current stream does.

    ``values`` may be read-only. A CPU tensor for the CPU is returned as it is.
    """
    if device.type != "cuda":
        return values.to(device) if isinstance(values, Tensor) else torch.tensor(values).to(device)
    host = pinned(values.numpy() if isinstance(values, Tensor) else values)
    stream, current = _stream(device, "to the device"), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        there = host.to(device, non_blocking=True)
    current.wait_stream(stream)
    there.record_stream(current)
    return there


def pinned(array: np.ndarray) -> Tensor:
    """A copy of ``array`` in pinned memory, from which a GPU copies without the host."""
    host = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=True)
    np.copyto(host.numpy(), array)
    return host


@cache
def _stream(device: torch.device, direction: str) -> torch.cuda.Stream:
    """One stream a direction, so that a copy to the device does not queue behind one from it."""
    return torch.cuda.Stream(device)

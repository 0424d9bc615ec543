"""A part of the points on a GPU, by torch; the only module of this package and of the memory that imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from rayssl.clustering.partition import Partition
from rayssl.clustering.points import GRID, exact_total

Precision = Literal["float32", "tf32", "bfloat16"]
_COSINES = 2**28  # of one block of points with all centroids: 1 GB
_ROWS = 65536


class TorchPartition(Partition):
    """A part whose points are on a ``device`` too, where they are assigned and added up; for the exact mode.

    ``precision`` is that of the products with centroids; sums of products are float32 in any case. "tf32" asks for no
    more than the device has: on a CPU it is float32. The same calls on the same device give the same bits. The device
    holds ``x [n, D]`` as it is given, 24 K D bytes and blocks of about 2.5 GB.
    """

    def __init__(
        self, x: np.ndarray, *, device: str, precision: Precision = "tf32", threads: int | None = None
    ) -> None:
        super().__init__(x, threads=threads)
        self._device = torch.device(device)
        self._precision: Precision = precision
        self._points = torch.empty(0)

    def begin(self, start: int, clusters: int) -> None:
        """`Partition.begin`; sends the points to the device."""
        super().begin(start, clusters)
        self._points = _on(self._device, self.x)

    def sums(self, first: int, last: int) -> np.ndarray:
        """`Partition.sums`; they are exact, so the device may add in any order."""
        sums = torch.zeros((last - first, self.x.shape[1]), dtype=torch.float64, device=self._device)
        for part, rows in _blocks(self._points, _ROWS):
            labels = self._labels(part) - first
            rows = torch.round(rows / GRID).double()
            if last - first < self._clusters:
                wanted = (labels >= 0) & (labels < last - first)
                labels, rows = labels[wanted], rows[wanted]
            sums.index_add_(0, labels, rows)
        found: np.ndarray = (sums * GRID).cpu().numpy()
        return found

    def total_cosine(self, centroids: np.ndarray) -> float:
        """`Partition.total_cosine`."""
        there = _on(self._device, centroids)
        total = 0.0
        for part, rows in _blocks(self._points, _ROWS):
            total += exact_total((rows * there[self._labels(part)]).sum(dim=1).cpu().numpy())
        return total

    def _nearest(self, centroids: np.ndarray) -> np.ndarray:
        there = _on(self._device, centroids)
        nearest = torch.empty(len(self._points), dtype=torch.int32, device=self._device)
        with _products(self._device, self._precision) as product:
            for part, rows in _blocks(self._points, max(1, _COSINES // len(centroids))):
                nearest[part] = product(rows, there).max(dim=1).indices.int()
        found: np.ndarray = nearest.cpu().numpy()
        return found

    def _labels(self, part: slice) -> torch.Tensor:
        return torch.from_numpy(self.labels[part]).to(self._device).long()


def _on(device: torch.device, x: np.ndarray) -> torch.Tensor:
    """``x [n, D]`` on the device, sent in pieces: the host may hold it read-only, which torch does not take."""
    points = torch.empty(x.shape, dtype=torch.from_numpy(np.empty(0, x.dtype)).dtype, device=device)
    for start in range(0, len(x), _ROWS):
        points[start : start + _ROWS] = torch.from_numpy(np.array(x[start : start + _ROWS]))
    return points


_Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
def _products(device: torch.device, precision: Precision) -> Iterator[_Product]:
    """A function of ``a [n, D]`` and ``b [K, D]`` to ``a b^T`` in float32. TF32 is a setting, restored afterwards."""
    if precision == "bfloat16":
        yield _bfloat16_product
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield lambda a, b: a @ b.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _bfloat16_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.bfloat16(), b.bfloat16()
    if a.is_cuda:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T  # the same numbers: a CPU's product of bfloat16 would also be rounded to it


def _blocks(points: torch.Tensor, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, len(points), count):
        part = slice(start, start + count)
        yield part, normalize(points[part].float(), dim=1)

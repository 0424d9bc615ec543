"""What a k-means asks of points on a device: nearest centroids, sums by cluster, directions. Plain torch, or kernels.

A `rayssl.clustering.gpu.kernels` kernel that cannot be compiled or does not fit the device is given up with a warning;
then torch does the same in blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayssl.clustering.gpu import kernels
from rayssl.clustering.points import GRID

log = logging.getLogger(__name__)
Precision = Literal["float16", "float32"]
ROWS = 65536  # of one block
_COSINES = 2**28  # of one block of points with all centroids: 1 GB
_EPS = 1e-12
_UP = 2.0**10  # lets float16 hold components of a unit row down to 2^-24 with all its digits
_given_up: set[str] = set()


class Products:
    """Nearest centroids for ``points [n, D]``, float16 or float32 and contiguous, on their device.

    "float16": both sides of the products are float16, which has the ten bits of TF32, and the sums are float32. Points
    that are float16 are multiplied as they are; of others, a copy is made. "float32": both sides are float32.
    """

    def __init__(self, points: Tensor, norms: Tensor, precision: Precision) -> None:
        self._left = points
        if precision == "float32":
            self._left = points.float()
        elif points.dtype != torch.float16:
            self._left = torch.empty_like(points, dtype=torch.float16)
            for part, rows in unit_blocks(points, norms):
                self._left[part] = rows * _UP
        self._tiles = list(kernels.tiles(self._left)) if kernels.present(points.device) else []

    def nearest(self, centroids: Tensor) -> Tensor:
        """The nearest of ``centroids [K, D]``, float32 of norm 1, to each point: int32 ``[n]``. Of equals the first."""
        left = self._left
        right = (centroids * _UP).half() if left.dtype == torch.float16 else centroids
        labels = torch.empty(len(left), dtype=torch.int32, device=left.device)
        if not len(left):
            return labels
        while self._tiles and "nearest" not in _given_up:
            try:
                kernels.nearest(left, right.contiguous(), labels, self._tiles[0])
                return labels
            except Exception as error:  # a compiler's, a driver's: there are many kinds
                self._tiles.pop(0)
                if not self._tiles:
                    give_up("nearest", error)
        with float32_products():
            for start in range(0, len(left), max(1, _COSINES // len(right))):
                part = slice(start, start + max(1, _COSINES // len(right)))
                labels[part] = _product(left[part], right).max(dim=1).indices.int()
        return labels


def sums_by_cluster(points: Tensor, scales: Tensor, order: Tensor, ends: Tensor, first: int, last: int) -> Tensor:
    """The sums of the unit rows of clusters first..last-1, in steps of `GRID`: float64 ``[last - first, D]``, exact.

    ``scales [n]``: the norms, in steps. ``order [n]``: the points by cluster. ``ends [K + 1]``: where those of each
    begin in it, with the end.
    """
    if kernels.present(points.device) and "sums" not in _given_up and len(points) and last > first:
        try:
            return kernels.sums(points, scales, order, ends, first, last)
        except Exception as error:
            give_up("sums", error)
    sums = torch.zeros((last - first, points.shape[1]), dtype=torch.float64, device=points.device)
    start, stop = ends[first].item(), ends[last].item()
    owner = torch.repeat_interleave(torch.arange(last - first, device=points.device), ends[first : last + 1].diff())
    for begin in range(int(start), int(stop), ROWS):
        ids = order[begin : min(begin + ROWS, int(stop))]
        # these are integers, and their sum is exact in any order
        sums.index_add_(0, owner[begin - int(start) :][: len(ids)], steps(points[ids], scales[ids]).double())
    return sums


def give_up(kernel: str, error: Exception) -> None:
    """From now on this process does without ``kernel``."""
    _given_up.add(kernel)
    reason = (str(error) or repr(error)).strip().splitlines()[-1][:200]
    log.warning(
        "k-means: the Triton kernel '%s' cannot be used here, torch does its work more slowly: %s", kernel, reason
    )


def norms_of(points: Tensor) -> Tensor:
    """The norms of rows ``[n, D]``, at least 1e-12, float32 ``[n]``; not finite where a value of the row is not.

    Added up in float64, so that rounded to float32 they do not depend on which other rows are there.
    """
    norms = torch.empty(len(points), dtype=torch.float32, device=points.device)
    for start in range(0, len(points), ROWS):
        part = slice(start, start + ROWS)
        norms[part] = torch.linalg.vector_norm(points[part], dim=1, dtype=torch.float64)
    return norms.clamp_(min=_EPS)


def unit_blocks(points: Tensor, norms: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows of ``points [n, D]`` scaled to norm 1, float32, in blocks."""
    for start in range(0, len(points), ROWS):
        part = slice(start, start + ROWS)
        yield part, points[part].float() / norms[part, None]


def steps(points: Tensor, scales: Tensor) -> Tensor:
    """``points [n, D]`` divided by ``scales [n]`` and rounded to integers, float32."""
    return torch.round(points.float() / scales[:, None])


def directions(sums: Tensor, before: Tensor) -> Tensor:
    """``sums [K, D]`` scaled to norm 1, float32; where a sum is zero, the row of ``before`` stays."""
    rows = sums.float()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms.clamp(min=_EPS), before)


def rounded_total(cosines: Tensor) -> Tensor:
    """The sum of ``cosines [n]`` rounded to the `GRID`, in steps of it: exact, as `points.exact_total` is; float64."""
    return torch.round(cosines.double() / GRID).sum()


@contextmanager
def float32_products() -> Iterator[None]:
    """Products of float32 here are not TF32, which is a setting of the process; it is restored afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a [n, D]`` with ``b [K, D]``: float32 ``[n, K]``."""
    if a.dtype == torch.float16 and a.is_cuda:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T  # of float16 the same numbers; a CPU would round their products to float16


def on_device(x: np.ndarray, device: torch.device) -> Tensor:
    """``x [n, D]`` on ``device``, sent in blocks; it may be read-only, which torch would warn of.

    To a GPU through two pinned buffers: one is filled while the other is sent.
    """
    points = torch.empty(x.shape, dtype=torch.from_numpy(np.empty(0, x.dtype)).dtype, device=device)
    if device.type != "cuda":
        for start in range(0, len(x), ROWS):
            points[start : start + ROWS] = torch.from_numpy(np.array(x[start : start + ROWS]))
        return points
    rows = min(ROWS, max(1, len(x)))
    buffers = [torch.empty((rows, *x.shape[1:]), dtype=points.dtype, pin_memory=True) for _ in range(2)]
    sent = [torch.cuda.Event() for _ in buffers]
    with torch.cuda.device(device):
        for number, start in enumerate(range(0, len(x), rows)):
            buffer, event = buffers[number % 2], sent[number % 2]
            event.synchronize()  # returns at once before the first use
            block = x[start : start + rows]
            np.copyto(buffer[: len(block)].numpy(), block)
            points[start : start + len(block)].copy_(buffer[: len(block)], non_blocking=True)
            event.record()
        torch.cuda.current_stream().synchronize()
    return points

"""Exact spherical k-means by torch, for a GPU; the only module of the memory that knows torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from rayssl.memory.kmeans import KMeans, check_points, fill_empty, first_centroids

Precision = Literal["float32", "tf32", "bfloat16"]
_COSINES = 2**28  # of one block of points with all centroids: 1 GB
_ROWS = 65536


def torch_kmeans(
    x: np.ndarray,
    clusters: int,
    *,
    device: str,
    precision: Precision = "tf32",
    iterations: int = 10,
    seed: int | list[int],
    initial: np.ndarray | None = None,
) -> KMeans:
    """Lloyd's iterations as `rayssl.memory.kmeans.spherical_kmeans` does them, on ``device``.

    The same start, repair and means (summed in float64, in a fixed order: the same call on the same device gives the
    same bits). ``precision`` is that of the products with the centroids; the sums of products are float32 in any case.
    "tf32" asks for no more than the device has: on a CPU it is float32. The device holds ``x [n, D]`` as it is given,
    24 K D bytes and blocks of about 2.5 GB. Raises ValueError when n < K or a value is not finite.
    """
    check_points(x, clusters, iterations)
    place = torch.device(device)
    points = _on(place, x)
    centroids = torch.from_numpy(first_centroids(x, clusters, seed, initial)).to(place)
    with _products(place, precision) as product:
        labels = _assign(points, centroids, product)
        for _ in range(iterations):
            _repair(x, labels, centroids)
            centroids = _means(points, labels, centroids)
            before, labels = labels, _assign(points, centroids, product)
            if torch.equal(before, labels):
                break
    repaired = _repair(x, labels, centroids)
    total = torch.zeros((), dtype=torch.float64, device=place)
    for part, rows in _blocks(points, _ROWS):
        total += (rows * centroids[labels[part]]).sum(dtype=torch.float64)
    assignment = labels.cpu().numpy().astype(np.int32)
    return KMeans(centroids.cpu().numpy(), assignment, float(total) / len(x), repaired)


def _on(device: torch.device, x: np.ndarray) -> torch.Tensor:
    """``x [n, D]`` on the device, sent in pieces: the host may hold it read-only, which torch does not take."""
    points = torch.empty(x.shape, dtype=torch.from_numpy(np.empty(0, x.dtype)).dtype, device=device)
    for start in range(0, len(x), _ROWS):
        points[start : start + _ROWS] = torch.from_numpy(np.array(x[start : start + _ROWS]))
    return points


_Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
def _products(device: torch.device, precision: Precision) -> Iterator[_Product]:
    """A function of ``a [n, D]`` and ``b [K, D]`` to ``a b^T`` in float32; TF32 is a setting, given back afterwards."""
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


def _assign(points: torch.Tensor, centroids: torch.Tensor, product: _Product) -> torch.Tensor:
    labels = torch.empty(len(points), dtype=torch.int64, device=points.device)
    for part, rows in _blocks(points, max(1, _COSINES // len(centroids))):
        labels[part] = product(rows, centroids).max(dim=1).indices
    return labels


def _means(points: torch.Tensor, labels: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Directions of the clusters' sums ``[K, D]``, each added up in the order of the points."""
    sums = torch.zeros(before.shape, dtype=torch.float64, device=before.device)
    order = torch.argsort(labels, stable=True)
    for start in range(0, len(order), _ROWS):
        part = order[start : start + _ROWS]
        rows = normalize(points[part].float(), dim=1)
        present, lengths = torch.unique_consecutive(labels[part], return_counts=True)
        sums[present] += torch.segment_reduce(rows, "sum", lengths=lengths, unsafe=True).double()
    found = normalize(sums, dim=1).float()
    return torch.where(found.any(dim=1, keepdim=True), found, before)


def _repair(x: np.ndarray, labels: torch.Tensor, centroids: torch.Tensor) -> int:
    """`fill_empty` for tensors, in place; they come to the host only where a cluster is empty."""
    if bool(torch.bincount(labels, minlength=len(centroids)).all()):
        return 0
    assignment, rows = labels.cpu().numpy(), centroids.cpu().numpy()  # on a CPU these are the tensors' own memory
    repaired = fill_empty(x, assignment, rows)
    labels.copy_(torch.from_numpy(assignment))
    centroids.copy_(torch.from_numpy(rows))
    return repaired


def _blocks(points: torch.Tensor, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, len(points), count):
        part = slice(start, start + count)
        yield part, normalize(points[part].float(), dim=1)

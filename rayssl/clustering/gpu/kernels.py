"""The two loops of a k-means that are kernels of their own, in Triton: nearest centroids, and sums by cluster.

A plain product would write all n K cosines to memory, only to look for the largest of each row. Here a program keeps
the running maximum of its rows while the centroids stream by, and nothing but labels is written.

Where Triton is missing or cannot compile, `rayssl.clustering.gpu.products` does the same by torch alone.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs, and for some systems, comes without it
    triton = None

log = logging.getLogger(__name__)
_PIECE = 1024  # members of one piece of a cluster, which one program adds up
_LEAST_CAPABILITY = (8, 0)


class Tile(NamedTuple):
    """What one program of `nearest` multiplies at a time: ``rows`` by ``columns`` over ``dims``; and how."""

    rows: int
    columns: int
    dims: int
    warps: int
    stages: int
    flat: bool  # whether loads for the next columns begin before the last ones are compared


# By what is there, the first that fits. They are fixed, not timed on the spot: the choice must not change the bits.
HOPPER = (Tile(128, 256, 64, 8, 3, True), Tile(128, 128, 64, 4, 3, True))
AMPERE = (Tile(128, 128, 32, 8, 3, False), Tile(64, 64, 32, 4, 2, False))
_FLOAT32 = (Tile(64, 64, 32, 4, 2, False),)


def _nearest(  # type: ignore[no-untyped-def]  # a compiler reads it, which knows no Any
    points,
    centroids,
    labels,
    rows,
    clusters: tl.constexpr,
    dim: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIMS: tl.constexpr,
    FLAT: tl.constexpr,
) -> None:
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    label = tl.zeros((ROWS,), tl.int32)
    # rows and columns beyond the end are others again, so that most loads need no mask
    left = points + (own % rows).to(tl.int64)[:, None] * dim
    for start in tl.range(0, clusters, COLUMNS, flatten=FLAT):
        columns = start + tl.arange(0, COLUMNS)
        right = centroids + (columns % clusters).to(tl.int64)[None, :] * dim
        products = tl.zeros((ROWS, COLUMNS), tl.float32)
        for d in tl.range(0, dim, DIMS):
            dims = d + tl.arange(0, DIMS)
            if dim % DIMS == 0:
                a = tl.load(left + dims[None, :])
                b = tl.load(right + dims[:, None])
            else:
                a = tl.load(left + dims[None, :], mask=dims[None, :] < dim, other=0.0)
                b = tl.load(right + dims[:, None], mask=dims[:, None] < dim, other=0.0)
            products = tl.dot(a, b, products, input_precision="ieee")
        products = tl.where(columns[None, :] < clusters, products, float("-inf"))
        largest = tl.max(products, 1)
        # of equal ones the first, as on the CPU; two reductions of one number cost less than one of pairs
        first = tl.min(tl.where(products == largest[:, None], columns[None, :], 2147483647), 1)
        better = largest > best
        label = tl.where(better, first, label)
        best = tl.where(better, largest, best)
    tl.store(labels + own, label, mask=own < rows)


def _piece_sums(  # type: ignore[no-untyped-def]  # a compiler reads it, which knows no Any
    points,
    scales,
    order,
    starts,
    ends,
    sums,
    dim: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    piece = tl.program_id(0)
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    start, end = tl.load(starts + piece), tl.load(ends + piece)
    total = tl.zeros((DIMS,), tl.float64)
    for before in range(0, PIECE, ROWS):
        places = start + before + tl.arange(0, ROWS)
        here = places < end
        ids = tl.load(order + places, mask=here, other=0)
        scale = tl.load(scales + ids, mask=here, other=1.0)
        wanted = here[:, None] & (dims[None, :] < dim)
        values = tl.load(points + ids.to(tl.int64)[:, None] * dim + dims[None, :], mask=wanted, other=0.0)
        steps = tl.div_rn(values.to(tl.float32), tl.broadcast_to(scale[:, None], (ROWS, DIMS))).to(tl.float64)
        # 1.5 * 2^52: after this addition a float64 has no digits behind the point
        total += tl.sum((steps + 6755399441055744.0) - 6755399441055744.0, 0)
    tl.store(sums + piece.to(tl.int64) * dim + dims, total, mask=dims < dim)


def _added_pieces(pieces, first, sums, dim: tl.constexpr, DIMS: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    cluster = tl.program_id(0)
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    piece, end = tl.load(first + cluster), tl.load(first + cluster + 1)
    total = tl.zeros((DIMS,), tl.float64)
    while piece < end:
        total += tl.load(pieces + piece.to(tl.int64) * dim + dims, mask=dims < dim, other=0.0)
        piece += 1
    tl.store(sums + cluster.to(tl.int64) * dim + dims, total, mask=dims < dim)


if triton is not None:
    _nearest_kernel = triton.jit(_nearest)
    _piece_sums_kernel = triton.jit(_piece_sums)
    _added_pieces_kernel = triton.jit(_added_pieces)


def present(device: torch.device) -> bool:
    """Whether there are kernels for ``device``: on a GPU with Triton, or anywhere in Triton's interpreter."""
    if triton is None:
        return False
    if triton.knobs.runtime.interpret:
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def tiles(points: Tensor) -> tuple[Tile, ...]:
    """The tiles to try for ``points``."""
    if points.dtype == torch.float32 or not points.is_cuda:
        return _FLOAT32
    return HOPPER if torch.cuda.get_device_capability(points.device) >= (9, 0) else AMPERE


def nearest(points: Tensor, centroids: Tensor, labels: Tensor, tile: Tile) -> None:
    """Writes into ``labels [n]`` int32 which of ``centroids [K, D]`` has the largest product with each row.

    ``points [n, D]`` of the same type as the centroids, float16 or float32, all contiguous. Products are added up in
    float32. Of equal ones the first centroid is taken.
    """
    count, dim = points.shape
    options = {} if not points.is_cuda else {"num_warps": tile.warps, "num_stages": tile.stages}
    with _current(points):
        _nearest_kernel[(-(-count // tile.rows),)](
            points,
            centroids,
            labels,
            count,
            clusters=len(centroids),
            dim=dim,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DIMS=tile.dims,
            FLAT=tile.flat,
            **options,
        )


def sums(points: Tensor, scales: Tensor, order: Tensor, ends: Tensor, first: int, last: int) -> Tensor:
    """The sums of the points of clusters first..last-1, each value divided by its row's scale and rounded: float64.

    ``points [n, D]``, ``scales [n]`` float32; ``order [n]`` the points by cluster, and ``ends [K + 1]`` where those of
    each begin in it, with the end. Long clusters are added up in pieces of 1,024, by several programs. There are no
    atomics, so the order of the additions is always the same.
    """
    clusters, dim = last - first, points.shape[1]
    begin, end = ends[first:last], ends[first + 1 : last + 1]
    bounds = torch.zeros(clusters + 1, dtype=torch.int64, device=points.device)
    torch.cumsum(-((begin - end) // _PIECE), 0, out=bounds[1:])
    count = len(points) // _PIECE + clusters  # at least as many as there are: the host need not wait for the number
    number = torch.arange(count, device=points.device)
    owner = torch.searchsorted(bounds[1:], number, right=True).clamp_(max=clusters - 1)
    starts = begin[owner] + (number - bounds[owner]) * _PIECE
    stops = torch.minimum(starts + _PIECE, end[owner])
    pieces = torch.empty((count, dim), dtype=torch.float64, device=points.device)
    found = torch.empty((clusters, dim), dtype=torch.float64, device=points.device)
    rows, dims = 16, min(256, triton.next_power_of_2(dim))
    with _current(points):
        _piece_sums_kernel[(count, -(-dim // dims))](
            points, scales, order, starts, stops, pieces, dim=dim, PIECE=_PIECE, ROWS=rows, DIMS=dims
        )
        _added_pieces_kernel[(clusters, -(-dim // dims))](pieces, bounds, found, dim=dim, DIMS=dims)
    return found


def _current(points: Tensor) -> AbstractContextManager[object]:
    """Makes the device of ``points`` the current one: Triton launches there, whatever device its arguments are on."""
    return torch.cuda.device(points.device) if points.is_cuda else nullcontext()

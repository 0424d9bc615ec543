"""A part of the points on a GPU. A single part clusters there alone; several answer like any other `Partition`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.gpu.members import TorchMembers, TorchRanking, places_of
from rayssl.clustering.gpu.products import (
    ROWS,
    Precision,
    Products,
    directions,
    float32_products,
    norms_of,
    on_device,
    rounded_total,
    sums_by_cluster,
    unit_blocks,
)
from rayssl.clustering.gpu.rows import whitened
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.points import GRID
from rayssl.clustering.result import Clusters

if TYPE_CHECKING:
    from rayssl.clustering.whitening import Whitening

_NEAR_ROWS = 4096  # of centroids that are compared with all at a time


class TorchPartition(Partition):
    """A part whose points ``x [n, D]`` are on a ``device`` from the start: later changes of ``x`` change nothing here.

    For the exact mode. ``precision`` is that of the products with centroids, see `Products`. ``whitening``: of the
    whitened points. The same calls on the same device give the same bits. Labels stay on the device until `assignment`.

    The device holds ``x`` as it is given, 24 n + 40 K D bytes and a block of about 1 GB. If ``x`` is float32, products
    take 2 n D bytes more.
    """

    def __init__(
        self,
        x: np.ndarray,
        *,
        device: str,
        precision: Precision = "float16",
        threads: int | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__(np.empty((0, x.shape[1]), x.dtype), threads=threads)
        self._device = torch.device(device)
        self._points = on_device(x, self._device)
        if whitening is not None:
            _whiten(self._points, whitening)
        self._norms = norms_of(self._points)
        self._scales = self._norms * GRID
        self._precision: Precision = precision
        self._products: Products | None = None
        self._on = torch.zeros(len(x), dtype=torch.int32, device=self._device)  # the labels
        self._sorted: tuple[Tensor, Tensor] | None = None
        self._members: TorchMembers | None = None
        self._ranked: TorchRanking | None = None

    def survey(self) -> tuple[int, int, bool]:
        """`Partition.survey`."""
        return len(self._points), self._points.shape[1], bool(torch.isfinite(self._norms).all())

    def begin(self, start: int, clusters: int) -> None:
        """`Partition.begin`."""
        self._start, self._clusters = start, clusters
        self._give(torch.zeros_like(self._on))

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Partition.rows`."""
        here = np.flatnonzero((positions >= self._start) & (positions < self._start + len(self._points)))
        return here, _off(self._points[self._to(positions[here] - self._start)])

    def assignment(self) -> np.ndarray:
        """`Partition.assignment`."""
        return _off(self._on)

    def sizes(self) -> np.ndarray:
        """`Partition.sizes`."""
        return _off(self._by_cluster()[1].diff())

    def sums(self, first: int, last: int) -> np.ndarray:
        """`Partition.sums`; they are exact, so the device may add in any order."""
        return _off(self._sums(first, last) * GRID)

    # Lloyd's iterations

    def lloyd(self, start: np.ndarray, iterations: int) -> Clusters | None:
        """`Partition.lloyd`. K sizes an iteration leave the device, and the centroids at the end.

        Where clusters are empty, a few rows and the sums of the split ones do so too, see `Coordinator.fill_empty`.
        """
        if start.ndim == 1:
            places = self._to(start)
            first = self._points[places].float() / self._norms[places, None]
        else:
            first = self._to(start)
        centroids = _Rows(first)
        coordinator = Coordinator(LocalPartitions([self]), 1, len(self._points), first.shape[1], self._clusters)
        self._assign(centroids.rows)
        for _ in range(iterations):
            coordinator.fill_empty(centroids)
            centroids.rows = directions(self._sums(0, self._clusters), centroids.rows)
            if not self._assign(centroids.rows):
                break
        repaired = coordinator.fill_empty(centroids)
        return Clusters(_off(centroids.rows), self._total(centroids.rows) / len(self._points), repaired)

    def assign(self, centroids: np.ndarray) -> bool:
        """`Partition.assign`."""
        return self._assign(self._to(centroids))

    def total_cosine(self, centroids: np.ndarray) -> float:
        """`Partition.total_cosine`."""
        return self._total(self._to(centroids))

    def near_centroids(self, centroids: np.ndarray, count: int, first: int, last: int) -> np.ndarray:
        """`Partition.near_centroids`."""
        there, found = self._to(centroids), []
        with float32_products():
            for start in range(first, last, _NEAR_ROWS):
                own = torch.arange(start, min(start + _NEAR_ROWS, last), device=self._device)
                cosines = there[own] @ there.T
                cosines[torch.arange(len(own), device=self._device), own] = -torch.inf
                found.append(cosines.topk(count, dim=1).indices.int())
        return np.concatenate([_off(part) for part in found]) if found else np.zeros((0, count), np.int32)

    def near_merges(self, means: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Partition.near_merges`."""
        there, of = self._to(means), self._to(rows)
        squares, shares = there.square().sum(dim=1), 1 / self._to(sizes).float()
        nearest, least = torch.empty_like(of), torch.empty(len(of), device=self._device)
        with float32_products():
            for start in range(0, len(of), _NEAR_ROWS):
                part = slice(start, start + _NEAR_ROWS)
                own = of[part]
                costs = torch.addmm(squares, there[own], there.T, alpha=-2).add_(squares[own, None]).clamp_(min=0)
                costs /= shares + shares[own, None]
                costs[torch.arange(len(own), device=self._device), own] = torch.inf
                least[part], nearest[part] = costs.min(dim=1)
        return _off(nearest), _off(least)

    def _assign(self, centroids: Tensor) -> bool:
        if self._products is None:
            self._products = Products(self._points, self._norms, self._precision)
        nearest = self._products.nearest(centroids)
        changed = not torch.equal(nearest, self._on)
        if changed:
            self._give(nearest)
        return changed

    def _total(self, centroids: Tensor) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for part, rows in unit_blocks(self._points, self._norms):
            cosines = (rows * centroids[self._on[part].long()]).sum(dim=1, dtype=torch.float64)
            total += rounded_total(cosines.float())
        return total.item() * GRID

    def _sums(self, first: int, last: int) -> Tensor:
        order, ends = self._by_cluster()
        return sums_by_cluster(self._points, self._scales, order, ends, first, last)

    # Halving and joining of clusters

    def relabel(self, table: np.ndarray) -> None:
        """`Partition.relabel`."""
        self._give(self._to(table)[self._on.long()])

    def hold(self, clusters: np.ndarray, ranks: np.ndarray, strides: np.ndarray) -> None:
        """`Partition.hold`."""
        order, ends = self._by_cluster()
        bounds = _off(torch.stack([ends[self._to(clusters)], ends[self._to(clusters + 1)]]))
        starts = bounds[0] + -ranks % strides
        lengths = np.maximum(0, -((starts - bounds[1]) // strides))
        places, cluster = places_of(self._to(starts), self._to(lengths), self._to(strides), int(lengths.sum()))
        self._members = TorchMembers(self._points, self._scales, order[places], cluster)

    def held_sums(self, count: int) -> np.ndarray:
        """`Partition.held_sums`."""
        assert self._members is not None
        return _off(self._members.sums(count))

    def farthest(self, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Partition.farthest`."""
        assert self._members is not None
        least, rows = self._members.farthest(self._to(centroids))
        return _off(least), _off(rows)

    def lean(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Partition.lean`."""
        assert self._members is not None
        counts, sums = self._members.lean(self._to(directions))
        return _off(counts), _off(sums)

    def rank(self, clusters: np.ndarray, directions: np.ndarray) -> None:
        """`Partition.rank`."""
        order, ends = self._by_cluster()
        starts = ends[self._to(clusters)]
        lengths = ends[self._to(clusters + 1)] - starts
        places, cluster = places_of(starts, lengths, torch.ones_like(starts), int(lengths.sum()))
        self._ranked = TorchRanking(self._points, self._scales, order[places], cluster, self._to(directions))

    def histogram(self, known: np.ndarray, shift: int) -> np.ndarray:
        """`Partition.histogram`."""
        assert self._ranked is not None
        return _off(self._ranked.histogram(self._to(known.astype(np.int64)), shift))

    def split(self, targets: np.ndarray, places: np.ndarray, equal: np.ndarray) -> np.ndarray:
        """`Partition.split`."""
        ranked = self._ranked
        assert ranked is not None
        below = ranked.below(self._to(places.astype(np.int64)), self._to(equal))
        sums = ranked.sums(below)
        labels = self._on.clone()
        labels[ranked.ids[below]] = self._to(targets.astype(np.int32))[ranked.cluster[below]]
        self._give(labels)
        return _off(sums)

    # Fast passes are not for a GPU

    def draw(self, sample: np.ndarray) -> None:
        """Raises ValueError."""
        raise ValueError("parts on a GPU are clustered in the mode exact")

    def watch(self, probe: np.ndarray) -> None:
        """Raises ValueError."""
        raise ValueError("parts on a GPU are clustered in the mode exact")

    def _give(self, labels: Tensor) -> None:
        """Takes other ``labels [n]`` and forgets what was found for the old ones."""
        self._on = labels
        self._sorted = self._members = self._ranked = None

    def _by_cluster(self) -> tuple[Tensor, Tensor]:
        """The points by label ``[n]``, and where those of each cluster begin: ``[K + 1]``, with the end; both int64."""
        if self._sorted is None:
            ordered, order = torch.sort(self._on, stable=True)
            wanted = torch.arange(self._clusters + 1, dtype=torch.int32, device=self._device)
            self._sorted = order, torch.searchsorted(ordered, wanted)
        return self._sorted

    def _to(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self._device)  # a copy: the array may be read-only


class _Rows:
    """Centroids on the device, of which `Coordinator.fill_empty` reads and changes a few by their numbers."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        return _off(self.rows[torch.from_numpy(which).to(self.rows.device)])

    def __setitem__(self, which: np.ndarray, rows: np.ndarray) -> None:
        self.rows[torch.from_numpy(which).to(self.rows.device)] = torch.from_numpy(rows).to(self.rows.device)


def _off(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.cpu().numpy()
    return found


def _whiten(points: Tensor, whitening: Whitening) -> None:
    """`Whitening.__call__` in place, a block at a time."""
    mean, mapped = (torch.from_numpy(np.array(each)).to(points.device) for each in (whitening.mean, whitening.map))
    for start in range(0, len(points), ROWS):
        part = slice(start, start + ROWS)
        points[part] = whitened(points[part], mean, mapped).to(points.dtype)

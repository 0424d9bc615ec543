"""Members of chosen clusters on a device: `rayssl.clustering.members` by torch, for the repair of empty clusters.

Products are rounded from float64 to float32, so that their bits do not depend on which other rows are there. Sums are
of integers, and exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rayssl.clustering.gpu.products import ROWS, steps
from rayssl.clustering.points import GRID


def places_of(starts: Tensor, lengths: Tensor, strides: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`rayssl.clustering.members.stretches` for ``count`` = the sum of ``lengths [S]``: two of int64 ``[count]``."""
    of = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), lengths, output_size=count)
    before = lengths.cumsum(0) - lengths
    return starts[of] + strides[of] * (torch.arange(count, device=starts.device) - before[of]), of


def products(rows: Tensor, others: Tensor) -> Tensor:
    """The product of each of ``rows [m, D]`` with its one of ``others [m, D]``, float32 ``[m]``."""
    return (rows * others).sum(dim=1, dtype=torch.float64).float()


class TorchMembers:
    """See `rayssl.clustering.members.Members`. ``ids [m]`` are rows of ``points``, by ``cluster [m]``, ascending."""

    def __init__(self, points: Tensor, scales: Tensor, ids: Tensor, cluster: Tensor) -> None:
        self._rows = steps(points[ids], scales[ids])
        self._cluster = cluster
        self._side = torch.zeros(len(ids), dtype=torch.bool, device=points.device)

    def sums(self, count: int) -> Tensor:
        """The sum of the members of each of the ``count`` clusters, float64 ``[S, D]``."""
        sums = torch.zeros((count, self._rows.shape[1]), dtype=torch.float64, device=self._rows.device)
        return sums.index_add_(0, self._cluster, self._rows.double()) * GRID

    def farthest(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Of each cluster the least cosine (in steps) to its row of ``centroids [S, D]``, and the first row with it."""
        cosines = products(self._rows, centroids[self._cluster])
        least = torch.full((len(centroids),), torch.inf, device=centroids.device)
        least.scatter_reduce_(0, self._cluster, cosines, "amin")
        hits = torch.where(
            cosines == least[self._cluster], torch.arange(len(cosines), device=cosines.device), len(cosines)
        )
        first = torch.full((len(centroids),), len(cosines), dtype=torch.int64, device=centroids.device)
        first.scatter_reduce_(0, self._cluster, hits, "amin")
        rows = torch.zeros_like(centroids)
        there = (first < len(cosines)).nonzero()[:, 0]
        rows[there] = self._rows[first[there]] * GRID
        return least, rows

    def lean(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Which members have a positive product with their row of ``directions [S, D]``: changes since the last call.

        Counts int64 ``[S]`` and sums float64 ``[S, D]``, those of the new members minus those that no longer are.
        """
        side = products(self._rows, directions[self._cluster]) > 0
        change = side.long() - self._side.long()
        self._side = side
        counts = torch.zeros(len(directions), dtype=torch.int64, device=directions.device)
        sums = torch.zeros(directions.shape, dtype=torch.float64, device=directions.device)
        counts.index_add_(0, self._cluster, change)
        sums.index_add_(0, self._cluster, self._rows.double() * change[:, None])
        return counts, sums * GRID


class TorchRanking:
    """See `rayssl.clustering.members.Ranking`. Rows are taken in blocks, only places are kept."""

    def __init__(self, points: Tensor, scales: Tensor, ids: Tensor, cluster: Tensor, directions: Tensor) -> None:
        self.ids, self.cluster = ids, cluster
        self._points, self._scales, self._count = points, scales, len(directions)
        found = [products(rows, directions[cluster[part]]) for part, rows in self._blocks()]
        places = torch.cat(found) if found else torch.zeros(0, device=points.device)
        # as integers in the same order; the addition makes -0 a 0
        bits = (places + 0.0).view(torch.int32).long() & 0xFFFFFFFF
        self._places = torch.where(bits >> 31 == 1, ~bits & 0xFFFFFFFF, bits | 1 << 31)

    def histogram(self, known: Tensor, shift: int) -> Tensor:
        """How often each value of the next eight bits occurs where the higher bits are ``known [S]``: ``[S, 256]``."""
        fit = (self._places >> shift + 8 == known[self.cluster]).nonzero()[:, 0]
        digits = self._places[fit] >> shift & 255
        return torch.bincount(self.cluster[fit] * 256 + digits, minlength=self._count * 256).view(-1, 256)

    def below(self, places: Tensor, equal: Tensor) -> Tensor:
        """Which members lie below ``places [S]``, or are among the first ``equal [S]`` at it: bool ``[m]``."""
        limits = places[self.cluster]
        at = (self._places == limits).nonzero()[:, 0]
        owners = self.cluster[at]
        rank = torch.arange(len(at), device=at.device) - torch.searchsorted(owners, owners)
        chosen = self._places < limits
        chosen[at] = rank < equal[owners]
        return chosen

    def sums(self, below: Tensor) -> Tensor:
        """The sums of the two kinds of members of each cluster, those ``below [m]`` second: float64 ``[S, 2, D]``."""
        dim = self._points.shape[1]
        sums = torch.zeros((2 * self._count, dim), dtype=torch.float64, device=self._points.device)
        kinds = self.cluster * 2 + below
        for part, rows in self._blocks():
            sums.index_add_(0, kinds[part], rows.double())
        return (sums * GRID).view(self._count, 2, dim)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.ids), ROWS):
            part = slice(start, start + ROWS)
            yield part, steps(self._points[self.ids[part]], self._scales[self.ids[part]])

"""Compares the Triton kernels with torch: run by `test_gpu` in a process in which Triton interprets them."""

from __future__ import annotations

import torch

from rayssl.clustering.gpu import kernels, products
from rayssl.clustering.gpu.products import Products, norms_of, steps, sums_by_cluster
from rayssl.clustering.points import GRID


def nearest() -> None:
    random = torch.Generator().manual_seed(0)
    for dtype, dim, precision in (
        (torch.float16, 40, "float16"),
        (torch.float32, 33, "float16"),
        (torch.float16, 64, "float32"),
    ):
        points = torch.randn(150, dim, generator=random).to(dtype)
        centroids = torch.nn.functional.normalize(torch.randn(90, dim, generator=random), dim=1)
        centroids[70] = centroids[3]
        points[5] = 0
        made = Products(points, norms_of(points), precision)
        assert made._tiles, "no kernel here"
        found = made.nearest(centroids)
        made._tiles = []
        expected = made.nearest(centroids)
        assert torch.equal(found, expected), (dtype, dim, precision, (found != expected).sum())
        assert found[5] == 0 and not (found == 70).any() and (found == 3).any()


def sums() -> None:
    random = torch.Generator().manual_seed(1)
    points = torch.randn(3000, 20, generator=random).half()
    labels = torch.randint(0, 9, (3000,), generator=random)
    labels[:2400], labels[labels == 4] = 2, 5
    scales = norms_of(points) * GRID
    order = torch.sort(labels, stable=True).indices
    ends = torch.searchsorted(labels[order], torch.arange(10))
    expected = torch.zeros(9, 20, dtype=torch.float64).index_add_(0, labels, steps(points, scales).double())
    for first, last in ((0, 9), (2, 7), (4, 5)):
        assert torch.equal(sums_by_cluster(points, scales, order, ends, first, last), expected[first:last])


if __name__ == "__main__":
    assert kernels.present(torch.device("cpu"))
    nearest()
    sums()
    assert not products._given_up

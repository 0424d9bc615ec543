"""K-means by torch against the CPU's; on a GPU too, where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayssl.bench.kmeans import KMeansCase, points
from rayssl.clustering import gpu
from rayssl.clustering.gpu import Precision, TorchPartition
from rayssl.clustering.kmeans import cluster, cluster_partition
from rayssl.clustering.result import KMeans
from rayssl.clustering.similarity import normalized_mutual_information

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ("cpu", pytest.param("cuda", marks=NO_GPU))


def torch_kmeans(
    x: np.ndarray, clusters: int, *, device: str, precision: Precision = "tf32", initial: np.ndarray | None = None
) -> KMeans:
    return cluster_partition(TorchPartition(x, device=device, precision=precision), clusters, seed=0, initial=initial)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lloyd_of_the_cpu(device: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_ROWS", 700)
    monkeypatch.setattr(gpu, "_COSINES", 500 * 40)
    x = points(KMeansCase(3000, 24, 40, spread=0.5))[0].astype(dtype) * dtype(3)
    cpu = cluster(x, 40, seed=0)
    found = torch_kmeans(x, 40, device=device, precision="float32")
    assert (found.assignment == cpu.assignment).mean() > 0.999
    assert found.assignment.dtype == np.int32
    np.testing.assert_allclose(found.centroids, cpu.centroids, atol=1e-5)
    assert found.objective == pytest.approx(cpu.objective, abs=1e-6)
    assert found.repaired == cpu.repaired


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_reduced_precision_is_as_good(device: str, precision: Precision) -> None:
    x, labels = points(KMeansCase(6000, 64, 100))
    exact = cluster(x, 100, seed=0)
    found = torch_kmeans(x, 100, device=device, precision=precision)
    again = torch_kmeans(x, 100, device=device, precision=precision)
    assert found.objective == pytest.approx(exact.objective, rel=0.01)
    nmi = normalized_mutual_information(found.assignment, labels)
    assert nmi == pytest.approx(normalized_mutual_information(exact.assignment, labels), abs=0.02)
    assert np.array_equal(found.centroids, again.centroids)
    assert np.array_equal(found.assignment, again.assignment)


@pytest.mark.parametrize("device", DEVICES)
def test_no_cluster_stays_empty(device: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)[np.arange(40) % 3]
    found = torch_kmeans(x, 40, device=device, precision="float32")
    assert sorted(found.assignment.tolist()) == list(range(40))
    assert found.repaired == cluster(x, 40, seed=0).repaired > 0


def test_bfloat16_products_are_added_up_in_float32() -> None:
    """1 + 2^-9 of two terms is kept, which bfloat16's eight bits would not hold."""
    a, b = torch.tensor([[1.0, 2.0**-9]]), torch.ones(1, 2)
    assert gpu._bfloat16_product(a, b).item() == 1 + 2.0**-9


def test_points_may_be_read_only_and_settings_are_given_back(recwarn: pytest.WarningsRecorder) -> None:
    x, _ = points(KMeansCase(200, 16, 4))
    x.flags.writeable = False
    before = torch.backends.cuda.matmul.allow_tf32
    first = points(KMeansCase(4, 16, 4))[0]
    assert torch_kmeans(x, 4, device="cpu", initial=first).centroids.shape == (4, 16)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert [str(warning.message) for warning in recwarn] == []

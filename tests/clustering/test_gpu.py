"""K-means by torch against the CPU's; on a GPU too, where there is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.bench.kmeans import KMeansCase, points
from rayssl.clustering.gpu import kernels, products
from rayssl.clustering.gpu.partition import TorchPartition
from rayssl.clustering.gpu.products import Precision
from rayssl.clustering.kmeans import cluster, cluster_parts, nearest_centroids_by
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.points import unit_rows
from rayssl.clustering.result import KMeans
from rayssl.clustering.similarity import nearest_centroids, normalized_mutual_information
from rayssl.clustering.whitening import Whitening

ROOT = Path(__file__).parents[2]

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ("cpu", pytest.param("cuda", marks=NO_GPU))


def torch_kmeans(
    x: np.ndarray, clusters: int, *, device: str, precision: Precision = "float16", initial: np.ndarray | None = None
) -> KMeans:
    part = TorchPartition(x, device=device, precision=precision)
    found = cluster_parts(LocalPartitions([part]), clusters, seed=0, initial=initial)
    return KMeans(found.centroids, part.assignment(), found.objective, found.repaired)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lloyd_of_the_cpu(device: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ROWS", 700)
    monkeypatch.setattr(products, "_COSINES", 500 * 40)
    x = points(KMeansCase(3000, 24, 40, spread=0.5))[0].astype(dtype) * dtype(3)
    cpu = cluster(x, 40, seed=0)
    found = torch_kmeans(x, 40, device=device, precision="float32")
    assert (found.assignment == cpu.assignment).mean() > 0.999
    assert found.assignment.dtype == np.int32
    np.testing.assert_allclose(found.centroids, cpu.centroids, atol=1e-5)
    assert found.objective == pytest.approx(cpu.objective, abs=1e-6)
    assert found.repaired == cpu.repaired


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_reduced_precision_is_as_good(device: str, dtype: type) -> None:
    x, labels = points(KMeansCase(6000, 64, 100))
    x = x.astype(dtype)
    exact = cluster(x, 100, seed=0)
    found = torch_kmeans(x, 100, device=device)
    again = torch_kmeans(x, 100, device=device)
    assert found.objective == pytest.approx(exact.objective, rel=0.001)
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


def test_products_of_float16_are_added_up_in_float32() -> None:
    """1 + 2^-14 of two terms is kept, which float16's eleven bits would not hold."""
    a, b = torch.tensor([[1.0, 2.0**-14]]).half(), torch.ones(1, 2).half()
    assert products._product(a, b).item() == 1 + 2.0**-14


def test_points_may_be_read_only_and_settings_are_given_back(recwarn: pytest.WarningsRecorder) -> None:
    x, _ = points(KMeansCase(200, 16, 4))
    x.flags.writeable = False
    before = torch.backends.cuda.matmul.allow_tf32
    first = points(KMeansCase(4, 16, 4))[0]
    assert torch_kmeans(x, 4, device="cpu", initial=first).centroids.shape == (4, 16)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert [str(warning.message) for warning in recwarn] == []


def test_of_equal_centroids_the_first_is_taken() -> None:
    x = np.random.default_rng(0).standard_normal((100, 12)).astype(np.float16)
    part = TorchPartition(x, device="cpu")
    part.begin(0, 8)
    part.assign(np.tile(np.eye(12, dtype=np.float32)[:4], (2, 1)))
    assert part.assignment().max() < 4


def test_halves_and_outliers_of_the_cpu() -> None:
    """What the repair asks, call by call; with strides, and with a cluster of which the part has no member."""
    x = points(KMeansCase(3000, 24, 12, spread=0.5))[0]
    centroids = cluster(x, 12, seed=0).centroids
    clusters, strides = np.array([3, 0, 11, 7]), np.array([1, 3, 2, 1])
    answers = []
    for part in (Partition(x), TorchPartition(x, device="cpu", precision="float32")):
        part.begin(0, 13)
        part.assign(np.concatenate([centroids, centroids[:1]]))
        part.relabel(np.where(np.arange(13) == 7, 3, np.arange(13)).astype(np.int32))
        part.hold(clusters, np.array([0, 1, 5, 0]), strides)
        found = [part.sizes(), part.held_sums(4), *part.farthest(centroids[clusters])]
        towards = centroids[clusters] - centroids[[1, 2, 4, 5]]
        found += [*part.lean(towards), *part.lean(-towards)]
        part.rank(clusters, towards)
        known, equal = np.zeros(4, np.uint32), np.ones(4, np.int64)
        for shift in (24, 16, 8):
            counts = part.histogram(known, shift)
            known = known << np.uint32(8) | counts.argmax(axis=1).astype(np.uint32)
            found.append(counts.argmax(axis=1) if shift > 8 else equal)
        found.append(part.split(np.array([12, 12, 12, 12]), known << np.uint32(8), equal))
        answers.append(
            [*found, part.assignment(), part.sums(0, 13), np.array(part.total_cosine(centroids[:1].repeat(13, 0)))]
        )
    for cpu, device in zip(*answers, strict=True):
        np.testing.assert_allclose(device, cpu, rtol=1e-4, atol=1e-4)


def test_many_empty_clusters_are_filled_as_on_the_cpu() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 12)).astype(np.float32)
    first = np.tile(unit_rows(x[:1]), (64, 1))
    cpu = cluster(x, 64, seed=0, initial=first, iterations=4)
    found = torch_kmeans(x, 64, device="cpu", precision="float32", initial=first)
    assert np.bincount(found.assignment, minlength=64).min() > 0
    assert found.objective == pytest.approx(cpu.objective, rel=0.05)


def test_the_device_has_its_own_copy_and_its_own_mode() -> None:
    x = points(KMeansCase(600, 16, 8))[0]
    part = TorchPartition(x, device="cpu")
    x[:] = np.nan
    assert part.survey() == (600, 16, True)
    for call in (part.draw, part.watch):
        with pytest.raises(ValueError, match="mode exact"):
            call(np.arange(3))


def test_values_that_are_not_finite_are_found() -> None:
    x = points(KMeansCase(600, 16, 8))[0]
    x[77, 3] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        cluster(x, 4, seed=0, device="cpu:0")


def test_whitened_on_the_device_as_on_the_cpu() -> None:
    x = points(KMeansCase(2000, 16, 8))[0].astype(np.float32) + 0.3
    whitening = Whitening.fit(x)
    part = TorchPartition(x, device="cpu", whitening=whitening)
    part.begin(0, 8)
    np.testing.assert_allclose(part.rows(np.arange(2000))[1], whitening(x), atol=1e-5)


def test_neighbours_of_centroids_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    centroids = unit_rows(np.random.default_rng(0).standard_normal((90, 16)))
    parts = LocalPartitions([TorchPartition(centroids[:9], device="cpu") for _ in range(3)])
    assert np.array_equal(nearest_centroids_by(parts, 3, centroids, 5), nearest_centroids(centroids, 5))
    with pytest.raises(ValueError, match="neighbours 90 must be fewer than clusters 90"):
        nearest_centroids_by(parts, 3, centroids, 90)


@pytest.mark.long
def test_kernels_in_the_interpreter_of_triton() -> None:
    """The kernels' arithmetic without a GPU: labels, ties, dimensions no tile divides, long clusters, exact sums."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "tests.clustering.interpreted"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_a_gpu(capability: int) -> None:
    """For Ampere and Hopper, by Triton's own compiler; their tiles fit the shared memory, and use the matrix units."""
    pytest.importorskip("triton")
    for tile in kernels.HOPPER if capability >= 90 else kernels.AMPERE:
        values = {"clusters": 25000, "dim": 512, "ROWS": tile.rows, "COLUMNS": tile.columns, "DIMS": tile.dims}
        types = {"points": "*fp16", "centroids": "*fp16", "labels": "*i32", "rows": "i32"}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        made = compiled(kernels._nearest_kernel, types, {**values, "FLAT": tile.flat}, capability, options)
        assert made.metadata.shared <= (232448 if capability >= 90 else 101376)
        assert ("wgmma.mma_async" if capability >= 90 else "mma.sync") in made.asm["ptx"]
        assert "cp.async" in made.asm["ptx"]
    types = {
        "points": "*fp16",
        "scales": "*fp32",
        **dict.fromkeys(("order", "starts", "ends"), "*i64"),
        "sums": "*fp64",
    }
    sums = compiled(kernels._piece_sums_kernel, types, {"dim": 512, "PIECE": 1024, "ROWS": 16, "DIMS": 256}, capability)
    added = {"pieces": "*fp64", "first": "*i64", "sums": "*fp64"}
    added = compiled(kernels._added_pieces_kernel, added, {"dim": 512, "DIMS": 256}, capability)
    atomics = re.compile(r"^\s*(@\S+\s+)?(atom|red)\.", re.MULTILINE)
    assert not any(atomics.search(made.asm["ptx"]) for made in (sums, added))


def compiled(kernel: Any, types: dict[str, str], values: dict[str, Any], capability: int, options: Any = None) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types.values()) if kind[0] == "*"}
    source = ASTSource(kernel, {**types, **dict.fromkeys(values, "constexpr")}, values, aligned)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options or {})

"""What a run is used for, on a GPU as on the CPU: k-means, nearest references, embedding, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rayssl
from rayssl.bench.kmeans import KMeansCase, points
from rayssl.cli import main
from rayssl.clustering.gpu import kernels, products
from rayssl.clustering.gpu.partition import TorchPartition
from rayssl.clustering.gpu.rows import DeviceRows
from rayssl.clustering.kmeans import cluster, cluster_parts
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.similarity import normalized_mutual_information
from rayssl.clustering.whitening import Moments, Whitening
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.memory.utterances.positives import nearest_rows
from tests.runs import experiment, write_corpus, write_run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def named(gpu: str) -> str:
    return "cpu:0" if gpu == "cpu" else gpu  # "cpu" itself would be the code for a CPU


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_kmeans(gpu: str, dtype: type) -> None:
    """Objective within .1 % of that of the CPU; the same bits twice; kernels, not what replaces them; two parts."""
    x = points(KMeansCase(20_000, 128, 300))[0].astype(dtype)
    cpu = cluster(x, 300, seed=0, iterations=5)
    found, again = (cluster(x, 300, seed=0, iterations=5, device=named(gpu)) for _ in range(2))
    assert found.objective == pytest.approx(cpu.objective, rel=0.001)
    assert np.array_equal(found.centroids, again.centroids) and np.array_equal(found.assignment, again.assignment)
    assert np.bincount(found.assignment, minlength=300).min() > 0
    parts = LocalPartitions([TorchPartition(half, device=gpu) for half in (x[:7001], x[7001:])])
    assert cluster_parts(parts, 300, seed=0, iterations=5).objective == pytest.approx(found.objective, rel=1e-4)
    if kernels.present(torch.device(gpu)):
        assert not products._given_up


def test_kernels_and_torch_find_the_same(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 to the bit, but for rows between two centroids; long clusters; a dimension that no tile divides."""
    x = points(KMeansCase(9000, 72, 40, spread=0.5))[0]
    kernel, plain = (TorchPartition(x, device=gpu, precision="float32") for _ in range(2))
    found = cluster_parts(LocalPartitions([kernel]), 40, seed=0, iterations=3)
    monkeypatch.setattr(kernels, "present", lambda device: False)
    expected = cluster_parts(LocalPartitions([plain]), 40, seed=0, iterations=3)
    assert (kernel.assignment() == plain.assignment()).mean() > 0.999
    np.testing.assert_allclose(found.centroids, expected.centroids, atol=2e-3)


def test_clusters_are_merged(gpu: str) -> None:
    """The same groups as on the CPU from the same start, the same bits twice, and in two parts."""
    x = points(KMeansCase(4000, 64, 400, spread=0.7))[0]
    cpu = cluster(x, 400, merged_from=1200, seed=0, iterations=5)
    found, again = (cluster(x, 400, merged_from=1200, seed=0, iterations=5, device=named(gpu)) for _ in range(2))
    assert np.array_equal(found.assignment, again.assignment)
    assert normalized_mutual_information(found.assignment, cpu.assignment) > 0.99
    assert found.objective == pytest.approx(cpu.objective, rel=0.001)
    parts = LocalPartitions([TorchPartition(half, device=gpu) for half in (x[:1301], x[1301:])])
    assert cluster_parts(parts, 400, merged_from=1200, seed=0, iterations=5).suggested == pytest.approx(400, rel=0.15)


def test_empty_clusters_are_filled(gpu: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)[np.arange(400) % 3]
    found = cluster(x, 100, seed=0, device=named(gpu))
    assert np.bincount(found.assignment, minlength=100).min() > 0
    assert found.repaired > 0


def test_whitening_and_nearest_references(gpu: str) -> None:
    x = points(KMeansCase(3000, 64, 30))[0]
    assert np.allclose(Moments.of(x, named(gpu)).products, Moments.of(x).products, atol=1e-6)
    whitening = Whitening.fit(x)
    out, expected = np.empty_like(x), np.empty_like(x)
    whitening.into(out, x, named(gpu))
    whitening.into(expected, x)
    np.testing.assert_allclose(out.astype(np.float32), expected.astype(np.float32), atol=1e-3)
    rows, present = DeviceRows(x, gpu), np.arange(3000) % 7 != 0
    ((places, similarity),) = rows.nearest(x[:50].astype(np.float32), present, [slice(0, 3000)], 6)
    own = np.flatnonzero(present)
    brute = nearest_rows(x[:50].astype(np.float32), x[own], own, 6)
    np.testing.assert_allclose(similarity, brute.similarity, atol=1e-3)
    assert (places == brute.ids).mean() > 0.98


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_corpus(folder / "corpus")
    write_run(experiment(folder / "run", folder / "corpus"))
    return folder / "run"


def test_embeds(gpu: str, run: Path) -> None:
    """fp32: components of unit rows within 1e-4. bf16: cosines above .99."""
    encoder = rayssl.load(run, device="cpu").encoder
    draw = np.random.default_rng(0)
    waves = [(draw.standard_normal(samples) * 3000).astype(np.int16) for samples in (8000, 6000, 8000, 9000, 6000)]
    cpu = embed_utterances(encoder, waves, "cpu")
    there = encoder.to(gpu)
    np.testing.assert_allclose(embed_utterances(there, waves, gpu), cpu, atol=1e-4)
    half = embed_utterances(there, waves, gpu, precision="bf16")
    assert (half * cpu).sum(axis=1).min() > 0.99


def test_model_and_export(gpu: str, run: Path, tmp_path: Path) -> None:
    """A run's model on the GPU agrees with the CPU's, and the run can be exported where there is a GPU."""
    wave = np.random.default_rng(1).standard_normal(9000).astype(np.float32) * 0.1
    a, b = (rayssl.load(run, device=device).embed(wave) for device in ("cpu", gpu))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert main(["export", str(run), "--out", str(tmp_path / "model.pt2")]) == 0
    assert (tmp_path / "model.pt2").stat().st_size > 0

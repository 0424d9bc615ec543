"""Merging of clusters by Ward's criterion, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from rayssl.clustering.gpu.partition import TorchPartition
from rayssl.clustering.kmeans import cluster, cluster_parts
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.points import unit_rows
from rayssl.clustering.similarity import normalized_mutual_information
from rayssl.clustering.ward import merge_table, nearest_merges, suggested_clusters


def _speakers(speakers: int, each: int, spread: float, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows in groups with few members, and their groups."""
    random = np.random.default_rng(3)
    labels = random.permutation(np.repeat(np.arange(speakers), each))
    centres = unit_rows(random.standard_normal((speakers, dim)))
    return unit_rows(centres[labels] + spread * random.standard_normal((len(labels), dim)).astype(np.float32)), labels


def _sums(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums = np.zeros((labels.max() + 1, x.shape[1]))
    np.add.at(sums, labels, x.astype(np.float64))
    return sums, np.bincount(labels)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether both labellings group alike."""
    pairs = len(np.unique(np.stack([a, b]), axis=1).T)
    return pairs == len(np.unique(a)) == len(np.unique(b))


@pytest.mark.parametrize("clusters", [1, 2, 37, 150, 599, 600])
def test_the_clusters_of_scipy(clusters: int) -> None:
    """From single points, and from clusters of scipy's own tree, whose sizes differ."""
    x, _ = _speakers(75, 8, 0.15)
    tree = linkage(x, "ward")
    expected = fcluster(tree, clusters, "maxclust")
    assert _same(merge_table(x.astype(np.float64), np.ones(600), clusters, nearest_merges)[0], expected)
    if clusters <= 200:
        some = fcluster(tree, 200, "maxclust") - 1
        table, _ = merge_table(*_sums(x, some), clusters, nearest_merges)
        assert table.dtype == np.int32
        assert _same(table[some], expected)


def test_equal_costs_end_and_are_repeatable() -> None:
    """All points in pairs, on a grid: many merges cost the same."""
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3).repeat(2, axis=0)
    for clusters in (64, 32, 5):
        table, _ = merge_table(grid, np.ones(128), clusters, nearest_merges)
        assert np.array_equal(np.unique(table), np.arange(clusters))
        assert np.array_equal(table[::2], table[1::2])
        assert np.array_equal(table, merge_table(grid, np.ones(128), clusters, nearest_merges)[0])


def test_no_pair_agrees_where_costs_are_rounded_apart() -> None:
    """A circle in which each finds the next one nearest; the cheapest pair is merged."""

    def near(means: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (rows + 1) % len(means), 1 + rows[::-1] / 2**20

    assert len(np.unique(merge_table(np.eye(6), np.ones(6), 2, near)[0])) == 2


@pytest.mark.parametrize("speakers", [40, 300])
def test_the_number_of_groups_is_suggested(speakers: int) -> None:
    x, _ = _speakers(speakers, 8, 0.12)
    for asked in (speakers // 2, speakers):
        partitions = LocalPartitions([Partition(x, threads=1)])
        found = cluster_parts(partitions, asked, merged_from=3 * speakers, seed=0)
        assert found.suggested == pytest.approx(speakers, rel=0.15)


def test_nothing_is_suggested_without_a_tree() -> None:
    assert suggested_clusters(np.zeros(100)) == 0
    assert suggested_clusters(np.zeros(0)) == 0
    assert suggested_clusters(np.ones(18)) == 0 < suggested_clusters(np.ones(19))
    assert cluster_parts(LocalPartitions([Partition(np.eye(20, 16))]), 5, seed=0).suggested == 0


def test_small_groups_are_found_where_lloyd_fails() -> None:
    x, speakers = _speakers(300, 8, 0.12)
    plain = cluster(x, 300, seed=0)
    merged = cluster(x, 300, merged_from=900, seed=0)
    purity = [normalized_mutual_information(found.assignment, speakers) for found in (plain, merged)]
    assert purity[0] < 0.97 < 0.99 < purity[1]
    assert merged.objective > plain.objective
    assert np.array_equal(np.unique(merged.assignment), np.arange(300))


def test_centroids_and_objective_are_those_of_the_labels() -> None:
    x, _ = _speakers(40, 8, 0.2)
    x = (x * np.random.default_rng(0).uniform(0.5, 2, (len(x), 1))).astype(np.float16)
    found = cluster(x, 30, merged_from=100, seed=0)
    sums, _ = _sums(unit_rows(x), found.assignment)
    np.testing.assert_allclose(found.centroids, unit_rows(sums), atol=1e-6)
    own = (unit_rows(x) * found.centroids[found.assignment]).sum(axis=1)
    assert found.objective == pytest.approx(own.mean(), abs=1e-6)


def test_the_same_for_any_number_of_parts_and_on_a_device() -> None:
    x, _ = _speakers(60, 8, 0.15)
    one = cluster(x, 60, merged_from=200, seed=0)
    for parts in (2, 3, 7):
        cuts = np.array_split(x, parts)
        partitions = LocalPartitions([Partition(part, threads=1) for part in cuts])
        found = cluster_parts(partitions, 60, merged_from=200, seed=0)
        assert np.array_equal(np.concatenate(partitions.every(Partition.assignment)), one.assignment)
        np.testing.assert_allclose(found.centroids, one.centroids, atol=1e-6)
    for count in (1, 2):
        on_device = LocalPartitions(
            [TorchPartition(part, device="cpu", precision="float32") for part in np.array_split(x, count)]
        )
        cluster_parts(on_device, 60, merged_from=200, seed=0)
        assert np.array_equal(np.concatenate(on_device.every(Partition.assignment)), one.assignment)


def test_what_cannot_be_merged() -> None:
    x, _ = _speakers(5, 8, 0.1)
    with pytest.raises(ValueError, match="merged_from must be 0 or at least clusters, got 9 and 10"):
        cluster(x, 10, merged_from=9, seed=0)
    with pytest.raises(ValueError, match="40 points cannot fill 41 clusters"):
        cluster(x, 10, merged_from=41, seed=0)
    with pytest.raises(ValueError, match=r"clusters must be in 1\.\.40"):
        merge_table(x.astype(np.float64), np.ones(40), 41, nearest_merges)

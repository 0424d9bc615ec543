"""SSPS sampling against a loop over anchors that follows the equations, its uniformity, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from rayssl.clustering.points import unit_rows
from rayssl.memory.utterances.positives import (
    Layout,
    merge_nearest,
    nearest_rows,
    sample_cluster,
    sample_nearest,
    sample_speaker,
)
from rayssl.memory.utterances.queue import PositivesQueue
from rayssl.random.draws import fold, keys_np, uniform_np

N, K = 300, 20


def _queue(members: np.ndarray, utterances: int = N) -> PositivesQueue:
    queue = PositivesQueue(utterances, max(1, len(members)))
    queue.push(members)
    return queue


def _problem(seed: int, fill: float = 0.3) -> tuple[np.ndarray, PositivesQueue, np.ndarray]:
    """An assignment with unclustered utterances, very unequal and empty clusters; a queue; neighbours ``[K, 3]``."""
    random = np.random.default_rng(seed)
    assignment = (random.random(N) ** 3 * (K + 1)).astype(np.int32) - 1
    assignment[assignment == 4] = 5
    neighbours = np.stack([random.permutation(np.delete(np.arange(K), k))[:3] for k in range(K)]).astype(np.int32)
    return assignment, _queue(random.permutation(N)[: int(fill * N)]), neighbours


def _candidates(anchor: int, cluster: int, assignment: np.ndarray, queue: PositivesQueue) -> list[int]:
    """Eq. 6: members of the cluster that are in the queue, the anchor excluded."""
    return [j for j in range(len(assignment)) if assignment[j] == cluster and j in queue.ids and j != anchor]


def _naive(
    anchor: int, key: np.ndarray, assignment: np.ndarray, queue: PositivesQueue, near: np.ndarray | None, skip: bool
) -> tuple[int, int]:
    own = int(assignment[anchor])
    if own < 0:
        return -1, 0
    options = [own] if near is None else near[own].tolist()
    if skip and near is not None:
        options = [c for c in options if _candidates(-1, c, assignment, queue)] or options[:1]
    cluster = options[int(uniform_np(key, 0)[0] * len(options))]
    pool = _candidates(anchor, cluster, assignment, queue)
    return (pool[int(uniform_np(key, 1)[0] * len(pool))] if pool else -1), len(pool)


@pytest.mark.parametrize(("neighbours", "skip"), [(0, False), (1, False), (3, False), (3, True)])
@pytest.mark.parametrize("fill", [0.05, 0.3, 1.0])
def test_every_anchor_as_in_a_loop(neighbours: int, skip: bool, fill: float) -> None:
    assignment, queue, nearest = _problem(1, fill)
    near = nearest[:, :neighbours] if neighbours else None
    ids = np.random.default_rng(0).integers(0, N, 400)  # more than once each, in any order
    keys = keys_np(fold(5, 2), ids)
    sample = sample_cluster(ids, Layout(assignment, K), near, queue, keys, skip_empty=skip)
    expected = [_naive(i, keys[r : r + 1], assignment, queue, near, skip) for r, i in enumerate(ids.tolist())]
    assert list(zip(sample.ids.tolist(), sample.pool.tolist(), strict=True)) == expected
    assert (sample.ids >= 0).any()
    assert (sample.ids < 0).any()


def test_never_the_anchor_itself() -> None:
    """Eq. 3 with a full queue and clusters of two: the only candidate is the other one."""
    assignment = (np.arange(N) // 2).astype(np.int32)
    ids = np.arange(N)
    sample = sample_cluster(ids, Layout(assignment, N // 2), None, _queue(ids), keys_np(0, ids))
    assert np.array_equal(sample.ids, ids ^ 1)
    assert (sample.pool == 1).all()


def test_alone_in_the_queue_finds_nothing() -> None:
    assignment = np.zeros(N, dtype=np.int32)
    sample = sample_cluster(
        np.array([7, 8]), Layout(assignment, 1), None, _queue(np.array([7])), keys_np(0, np.arange(2))
    )
    assert sample.ids.tolist() == [-1, 7]
    assert sample.pool.tolist() == [0, 1]


def test_neighbours_exclude_the_own_cluster() -> None:
    assignment, queue, nearest = _problem(2, 1.0)
    ids = np.flatnonzero(assignment >= 0)
    sample = sample_cluster(ids, Layout(assignment, K), nearest, queue, keys_np(1, ids))
    found = sample.ids >= 0
    chosen = assignment[sample.ids[found]]
    assert (chosen != assignment[ids[found]]).all()
    assert (nearest[assignment[ids[found]]] == chosen[:, None]).any(axis=1).all()


def test_an_empty_neighbour_is_a_miss_unless_skipped() -> None:
    assignment = np.array([0, 0, 1, 2, 2], dtype=np.int32)
    layout, queue = Layout(assignment, 3), _queue(np.array([3, 4]), 5)
    nearest = np.array([[1, 2], [2, 0], [1, 0]], dtype=np.int32)
    misses = 0
    for epoch in range(200):
        keys = keys_np(fold(0, epoch), np.array([0]))
        plain = sample_cluster(np.array([0]), layout, nearest, queue, keys).ids[0]
        skipping = sample_cluster(np.array([0]), layout, nearest, queue, keys, skip_empty=True).ids[0]
        misses += plain == -1
        assert plain in (-1, 3, 4)
        assert skipping in (3, 4)
    assert 70 < misses < 130


@pytest.mark.parametrize("neighbours", [0, 3])
def test_uniform_over_epochs(neighbours: int) -> None:
    """One anchor over 6,000 epochs: uniform among members, and with M = 3 first uniform among clusters."""
    random = np.random.default_rng(0)
    assignment = np.repeat(np.arange(4), [5, 4, 6, 3]).astype(np.int32)
    queue = _queue(random.permutation(18), 18)
    nearest = np.array([[1, 2, 3]] * 4, dtype=np.int32) if neighbours else None
    anchor, layout = np.array([2]), Layout(assignment, 4)
    drawn = [
        int(sample_cluster(anchor, layout, nearest, queue, keys_np(fold(9, epoch), anchor)).ids[0])
        for epoch in range(6000)
    ]
    observed = np.bincount(drawn, minlength=18)
    sizes = np.bincount(assignment)
    if neighbours:
        expected = np.where(assignment > 0, 6000 / 3 / sizes[assignment], 0)
    else:
        expected = np.where((assignment == 0) & (np.arange(18) != 2), 6000 / 4, 0)
    assert (observed[expected == 0] == 0).all()
    assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_coverage_of_equal_clusters(factor: int) -> None:
    """|Q'| = factor * K random utterances: an anchor finds somebody with probability 1 - (1 - 1/K)^|Q'|."""
    clusters, each = 1500, 60
    random = np.random.default_rng(factor)
    count = clusters * each
    assignment = random.permutation(np.repeat(np.arange(clusters, dtype=np.int32), each))
    order = random.permutation(count)
    queue = _queue(order[: factor * clusters], count)
    ids = order[factor * clusters :]  # anchors that are not in the queue themselves
    sample = sample_cluster(ids, Layout(assignment, clusters), None, queue, keys_np(1, ids))
    expected = 1 - (1 - 1 / clusters) ** (factor * clusters)
    # the clusters, not the anchors, are the independent trials
    tolerance = 3 * np.sqrt(expected * (1 - expected) / clusters)
    assert (sample.ids >= 0).mean() == pytest.approx(expected, abs=tolerance)
    assert sample.pool.mean() == pytest.approx(factor, rel=0.02)


def test_layout_of_an_empty_assignment() -> None:
    layout = Layout(np.full(6, -1, dtype=np.int32), 3)
    ids = np.arange(6)
    sample = sample_cluster(ids, layout, None, _queue(ids, 6), keys_np(0, ids))
    assert (sample.ids == -1).all()


@pytest.mark.parametrize("parts", [1, 3])
def test_nearest_references_by_brute_force(parts: int) -> None:
    random = np.random.default_rng(0)
    rows = unit_rows(random.standard_normal((60, 5)))
    pool = random.permutation(60)[:30]
    found = [nearest_rows(rows, rows[own], own, 5) for own in np.array_split(pool, parts)]
    near = merge_nearest(found, 60, 5)
    ids = np.arange(60)
    seen: dict[int, set[int]] = {i: set() for i in range(60)}
    for epoch in range(80):
        sample = sample_nearest(ids, near, 4, keys_np(fold(1, epoch), ids))
        for i in ids.tolist():
            seen[i].add(int(sample.ids[i]))
    for i in ids.tolist():
        others = sorted((j for j in pool.tolist() if j != i), key=lambda j: -float(rows[i] @ rows[j]))
        assert seen[i] == set(others[:4])
        assert sample.pool[i] == 4


def test_nearest_with_hardly_anybody() -> None:
    rows = np.eye(2, dtype=np.float32)
    ids, keys = np.array([0, 1]), keys_np(0, np.arange(2))
    nobody = merge_nearest([], 2, 3)
    assert (nobody.ids == -1).all()
    sample = sample_nearest(ids, nobody, 2, keys)
    assert sample.ids.tolist() == [-1, -1] and sample.pool.tolist() == [0, 0]
    sample = sample_nearest(ids, merge_nearest([nearest_rows(rows, rows[1:], np.array([1]), 3)], 2, 3), 2, keys)
    assert sample.ids.tolist() == [1, -1]
    assert sample.pool.tolist() == [1, 0]


def test_of_equally_near_ones_the_lowest_ids() -> None:
    rows = np.ones((1, 1), dtype=np.float32)
    parts = [nearest_rows(rows, np.ones((2, 1)), np.array(ids), 2) for ids in ([7, 8], [2, 9], [4, 5])]
    assert merge_nearest(parts, 1, 3).ids.tolist() == [[2, 4, 5]]


@pytest.mark.parametrize("fill", [0.02, 0.4, 1.0])
def test_the_bound_draws_the_speakers_other_recordings(fill: float) -> None:
    random = np.random.default_rng(2)
    speakers = random.integers(-1, 30, N).astype(np.int32)
    recordings = np.where(random.random(N) < 0.2, -1, speakers * 3 + random.integers(0, 3, N))
    queue = _queue(random.permutation(N)[: int(fill * N)])
    ids = random.integers(0, N, 500)
    keys = keys_np(fold(1, 1), ids)
    sample = sample_speaker(ids, Layout(speakers, 30), recordings, queue, keys)
    for row, anchor in enumerate(ids.tolist()):
        pool = [
            j
            for j in _candidates(anchor, int(speakers[anchor]), speakers, queue)
            if speakers[anchor] >= 0 and (recordings[j] != recordings[anchor] or recordings[j] < 0)
        ]
        expected = pool[int(uniform_np(keys[row : row + 1], 1)[0] * len(pool))] if pool else -1
        assert (sample.ids[row], sample.pool[row]) == (expected, len(pool))
    assert (sample.ids >= 0).any()

"""K-means of points in parts: the same for any number of parts, whatever they are asked; and each part's answers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, TypeVarTuple

import numpy as np
import pytest

from rayssl.bench.kmeans import KMeansCase, points
from rayssl.clustering import coordinator
from rayssl.clustering.coordinator import Coordinator
from rayssl.clustering.kmeans import cluster, cluster_parts, partition_on
from rayssl.clustering.members import Ranking
from rayssl.clustering.partition import Partition, call
from rayssl.clustering.partitions import LocalPartitions, SampledPartitions
from rayssl.clustering.points import assign, partial_sums, steps, unit_rows, working
from rayssl.clustering.result import Clusters, Mode

P, T, Ts = ParamSpec("P"), TypeVar("T"), TypeVarTuple("Ts")
CUTS = {1: [], 2: [0.3], 3: [0.2, 0.21], 5: [0.1, 0.15, 0.15, 0.8]}  # the third of the five is empty


def _travelled(value: Any) -> Any:
    """As another process would get it: a copy whose arrays are read-only."""
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(sent, buffers=[bytes(buffer.raw()) for buffer in buffers])


class Far(LocalPartitions):
    """Parts as if in other processes; the bytes of what was asked and answered are counted."""

    def __init__(self, parts: Sequence[Partition]) -> None:
        super().__init__(parts)
        self.parts = parts
        self.largest: dict[str, int] = {}

    def every(
        self, method: Callable[Concatenate[Partition, P], T], /, *arguments: P.args, **options: P.kwargs
    ) -> list[T]:
        return self._answers(method, [arguments for _ in self.parts])

    def each(self, method: Callable[[Partition, *Ts], T], arguments: Sequence[tuple[*Ts]], /) -> list[T]:
        return self._answers(method, arguments)

    def _answers(self, method: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        sent = _travelled((method, arguments))
        answers = [call(part, sent[0], *own) for part, own in zip(self.parts, sent[1], strict=True)]
        bytes_ = max(len(pickle.dumps(one)) for one in (*arguments, *answers))
        self.largest[method.__name__] = max(bytes_, self.largest.get(method.__name__, 0))
        return _travelled(answers)


def _far(x: np.ndarray, count: int, threads: int | None = None) -> Far:
    cuts = [int(share * len(x)) for share in CUTS[count]]
    return Far([Partition(part, threads=threads) for part in np.split(x, cuts)])


def _labels(partitions: Far) -> np.ndarray:
    return np.concatenate(partitions.every(Partition.assignment))


def _same(a: Clusters, b: Clusters) -> None:
    assert np.array_equal(a.centroids, b.centroids)
    assert a.objective == pytest.approx(b.objective, abs=1e-6)
    assert a.repaired == b.repaired


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("warm", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_same_for_any_number_of_parts(mode: Mode, warm: bool) -> None:
    x, _ = points(KMeansCase(5260, 32, 260))
    initial = unit_rows(x[:260]) if warm else None
    one = cluster(x, 260, mode=mode, seed=3, initial=initial, iterations=3)
    for count in CUTS:
        partitions = _far(x, count, threads=count % 2 + 1)
        found = cluster_parts(partitions, 260, mode=mode, seed=3, initial=initial, iterations=3, threads=count % 2 + 1)
        _same(found, Clusters(one.centroids, one.objective, one.repaired))
        assert np.array_equal(_labels(partitions), one.assignment)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_nearly_collapsed_points(mode: Mode) -> None:
    """Most points are one, so that most clusters come from halving, by rank alone."""
    random = np.random.default_rng(0)
    x = np.repeat(random.standard_normal((1, 16)), 2000, axis=0).astype(np.float32)
    x[random.choice(2000, 40, replace=False)] = random.standard_normal((40, 16))
    found = {}
    for count in CUTS:
        partitions = _far(x, count)
        found[count] = cluster_parts(partitions, 300, mode=mode, seed=0, iterations=1), _labels(partitions)
        assert np.bincount(found[count][1], minlength=300).min() > 0
        _same(found[count][0], found[1][0])
        assert np.array_equal(found[count][1], found[1][1])
    assert found[1][0].repaired > 200


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_what_travels_grows_with_clusters_and_not_with_points(mode: Mode) -> None:
    largest = []
    for rows in (6000, 18_000):
        partitions = _far(points(KMeansCase(rows, 32, 300, spread=2.0))[0], 2)
        cluster_parts(partitions, 300, mode=mode, seed=0, iterations=2)
        largest.append(partitions.largest)
    few, many = largest
    assert few.keys() <= many.keys()
    assert all(many[name] < 4 * 8 * 300 * 32 for name in many if name != "assignment"), many
    assert "assignment" not in few


def test_the_fast_mode_takes_no_part_in_small_jobs() -> None:
    x, _ = points(KMeansCase(2000, 24, 30))
    fast, exact = (cluster_parts(_far(x, 3), 30, mode=mode, seed=0) for mode in ("fast", "exact"))
    _same(fast, exact)


def test_torch_parts() -> None:
    x, _ = points(KMeansCase(3000, 24, 40, spread=0.5))
    cpu = cluster(x, 40, seed=0)
    first = None
    for count in CUTS:
        cuts = [int(share * len(x)) for share in CUTS[count]]
        partitions = Far([partition_on("cpu:0", part) for part in np.split(x, cuts)])
        found = cluster_parts(partitions, 40, seed=0)
        # one part scales its centroids on the device, where the last bit is another
        first = found if first is None or count == 2 else first
        _same(found, first)
        np.testing.assert_allclose(found.centroids, cpu.centroids, atol=0.02)
        assert found.objective == pytest.approx(cpu.objective, abs=1e-5)
        assert (_labels(partitions) == cpu.assignment).mean() > 0.999


def test_sums_are_exact_in_any_order() -> None:
    x = np.random.default_rng(0).standard_normal((3000, 40)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 7, 3000)
    order = np.random.default_rng(2).permutation(3000)
    present, sums = partial_sums(steps(x), labels)
    assert np.array_equal(sums, partial_sums(steps(x[order]), labels[order])[1])
    halves = [partial_sums(steps(x[part]), labels[part])[1] for part in (slice(0, 1001), slice(1001, None))]
    assert np.array_equal(sums, halves[0] + halves[1])
    expected = np.stack([unit_rows(x)[labels == k].sum(axis=0, dtype=np.float64) for k in present])
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    np.testing.assert_allclose(steps(x) * 2.0**-28, unit_rows(x), atol=2.0**-29)


def test_sums_may_be_asked_for_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = points(KMeansCase(3000, 24, 600))
    for part in (Partition(x), partition_on("cpu:0", x)):
        whole = Coordinator.survey(LocalPartitions([part]), 600)
        centroids = unit_rows(np.stack([x[labels == k].sum(axis=0, dtype=np.float32) for k in range(600)]))
        part.assign(centroids)
        monkeypatch.setattr(coordinator, "_ANSWERS", 2**28)
        once = whole.sums()
        monkeypatch.setattr(coordinator, "_ANSWERS", 1)
        assert np.array_equal(once, whole.sums())


def test_gathered_rows_come_in_the_order_asked() -> None:
    x, _ = points(KMeansCase(500, 16, 4))
    whole = Coordinator.survey(_far(x, 5), 4)
    positions = np.random.default_rng(0).permutation(500)
    assert np.array_equal(whole.gather(positions), unit_rows(x[positions]))


def test_the_largest_cluster_is_split_towards_its_outlier() -> None:
    """The repair alone, since faiss fills most empty clusters on its way. Members of one group are not side by side."""
    angles = np.array([0.0, 0.6, 0.01, 0.62, 0.02, 0.61, 3.0, 3.1])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for count in CUTS:
        partitions = _far(x, count)
        whole = Coordinator.survey(partitions, 3)
        for part, own in zip(partitions.parts, np.split(np.arange(8), [int(s * 8) for s in CUTS[count]]), strict=True):
            part.labels[:] = own >= 6
        centroids = unit_rows(np.array([[1, 0.2], [-1, 0], [0, -1]]))
        assert whole.fill_empty(centroids) == 1
        labels = _labels(partitions)
        groups = {frozenset(np.flatnonzero(labels == k).tolist()) for k in range(3)}
        assert groups == {frozenset({0, 2, 4}), frozenset({1, 3, 5}), frozenset({6, 7})}
        for k in (0, 2):
            np.testing.assert_allclose(centroids[k], unit_rows(x[labels == k].mean(axis=0)[None])[0], atol=1e-6)
        np.testing.assert_allclose(centroids[1], [-1, 0])
        assert whole.fill_empty(centroids) == 0


def test_members_are_chosen_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With at most ten of a cluster looked at, every so many-th, and held one cluster after the other."""
    monkeypatch.setattr(coordinator, "_MEMBERS", 10)
    monkeypatch.setattr(coordinator, "_HELD", 6)
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((200, 6)), random.integers(0, 5, 200).astype(np.int32)
    centroids = unit_rows(random.standard_normal((5, 6)))
    clusters = np.array([3, 0, 4])
    for count in CUTS:
        partitions = _far(x, count)
        whole = Coordinator.survey(partitions, 5)
        for part, own in zip(partitions.parts, np.split(labels, [int(s * 200) for s in CUTS[count]]), strict=True):
            part.labels[:] = own
        found = whole.farthest(clusters, whole.sizes(), centroids)
        for row, k in zip(found, clusters, strict=True):
            members = unit_rows(x[labels == k])
            some = members[:: -(-len(members) // 10)]
            np.testing.assert_allclose(row, some[(some @ centroids[k]).argmin()], atol=1e-6)
        held = [whole.held_sums(len(strides)) for _, strides in whole.held(clusters, whole.sizes())]
        assert len(held) > 1
        some = unit_rows(x[labels == 3])
        np.testing.assert_allclose(held[0][0], some[:: -(-len(some) // 10)].sum(axis=0), atol=1e-5)


def test_ranks_by_their_places_bit_by_bit() -> None:
    """Numbers of either sign, and many that are equal: the lower half of each cluster, first come first."""
    random = np.random.default_rng(0)
    x = unit_rows(np.round(random.standard_normal((400, 3)), 0))
    labels = np.sort(random.integers(0, 4, 400))
    towards = unit_rows(random.standard_normal((4, 3)))
    with working(1) as workers:
        ranking = Ranking(x, np.arange(400), labels, towards, workers)
    ranks = np.bincount(labels) // 2
    whole = Coordinator(_Ranked(ranking), 1, 400, 3, 4)
    places, equal = whole._places(ranks)
    below = ranking.below(places, equal[0])
    for k in range(4):
        members = np.flatnonzero(labels == k)
        along = np.einsum("nd,d->n", steps(x[members]), towards[k])
        expected = members[np.sort(np.argsort(along, kind="stable")[: ranks[k]])]
        assert np.array_equal(np.flatnonzero(below & (labels == k)), expected)


class _Ranked(LocalPartitions):
    def __init__(self, ranking: Ranking) -> None:
        self._parts = [ranking]  # type: ignore[list-item]


def test_overrides_are_called_and_the_sample_is_a_part_of_its_own() -> None:
    """A method of `Partition` by reference is that of the part's own class; a sample answers for its points only."""

    class Fewer(Partition):
        def sizes(self) -> np.ndarray:
            return super().sizes() - 1

    x, _ = points(KMeansCase(100, 16, 4))
    partitions = LocalPartitions([Fewer(x[:60]), Partition(x[60:])])
    whole = Coordinator.survey(partitions, 2)
    assert [sizes.tolist() for sizes in partitions.every(Partition.sizes)] == [[59, -1], [40, 0]]
    sample = whole.sample(np.array([1, 5, 70]))
    assert isinstance(sample.partitions, SampledPartitions)
    assert sample.sizes().tolist() == [[2, 0], [1, 0]]
    assert np.array_equal(sample.gather(np.array([2, 0])), unit_rows(x[[70, 1]]))


def test_a_part_labels_by_the_nearest() -> None:
    x, _ = points(KMeansCase(700, 16, 9))
    centroids = unit_rows(x[:9])
    part = Partition(x)
    part.begin(0, 9)
    assert part.assign(centroids)
    assert np.array_equal(part.labels, (unit_rows(x) @ centroids.T).argmax(axis=1))
    assert np.array_equal(part.labels, assign(x, centroids))
    assert not part.assign(centroids)
    total = (unit_rows(x) * centroids[part.labels]).sum()
    assert part.total_cosine(centroids) == pytest.approx(total, abs=1e-4)
    assert np.array_equal(part.sizes(), np.bincount(part.labels, minlength=9))


def test_what_cannot_be_clustered() -> None:
    x = np.ones((10, 4), dtype=np.float16)
    with pytest.raises(ValueError, match="10 points cannot fill 11 clusters"):
        cluster_parts(_far(x, 2), 11, seed=0)
    with pytest.raises(ValueError, match=r"different dimensions: \[3, 4\]"):
        cluster_parts(LocalPartitions([Partition(x), Partition(x[:, :3])]), 2, seed=0)
    x[9] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        cluster_parts(_far(x, 5), 2, seed=0)
    with pytest.raises(ValueError, match="mode must be exact or fast, got 'faster'"):
        cluster_parts(_far(x, 2), 2, mode="faster", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(3, 3\), expected \(2, 4\)"):
        cluster_parts(_far(x[:9], 2), 2, seed=0, initial=np.ones((3, 3), dtype=np.float32))

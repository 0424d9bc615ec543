"""The memory as the loop uses it: speakers found, rank splits, staleness, resume to the bit, what it refuses."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from rayssl.clustering.points import unit_rows
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.training.meters import UTTERANCE_FIGURES

SPEAKERS, RECORDINGS, UTTERANCES = 10, 4, 6  # utterances of each recording, recordings of each speaker
N = SPEAKERS * RECORDINGS * UTTERANCES
RECORDING = np.arange(N, dtype=np.int32) // UTTERANCES
SPEAKER = RECORDING // RECORDINGS


def _references(channel: float = 0.0) -> np.ndarray:
    """One direction for each speaker, one of strength ``channel`` for each recording, and a little noise."""
    random = np.random.default_rng(0)
    speakers, recordings = random.standard_normal((SPEAKERS, 32)), random.standard_normal((SPEAKERS * RECORDINGS, 32))
    x = speakers[SPEAKER] + channel * recordings[RECORDING] + 0.05 * random.standard_normal((N, 32))
    return x.astype(np.float32)


def _positives() -> np.ndarray:
    """Row i says i, so that a recalled row tells whose it is."""
    return np.repeat(np.arange(N, dtype=np.float32)[:, None], 3, axis=1)


def _everything(part: slice | np.ndarray = slice(None), channel: float = 0.0, labels: bool = True) -> RememberArrays:
    ids = np.arange(N)[part]
    known = (SPEAKER[part], RECORDING[part]) if labels else (None, None)
    return RememberArrays(ids, _references(channel)[part], _positives()[part], *known)


def _memory(**changes: Any) -> UtteranceMemory:
    sizes: dict[str, Any] = {"utterances": N, "reference_dim": 32, "positive_dim": 3, "queue": N}
    return UtteranceMemory(MemorySettings(**{**sizes, "clusters": 2 * SPEAKERS, "seed": 1, **changes}))


def _same_recall(one: RecallArrays, other: RecallArrays) -> None:
    for name in ("rows", "found", "ids"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def _same_state(one: UtteranceMemory, other: UtteranceMemory) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert np.array_equal(array, second[name]), name


def test_finds_the_speaker_in_other_recordings() -> None:
    memory = _memory()
    memory.remember(_everything())
    judged = memory.refresh(0)
    recall = memory.recall(np.arange(N), epoch=0)
    assert recall.found.mean() > 0.97  # an utterance alone in its cluster has nobody
    assert np.array_equal(recall.rows[:, 0][recall.found], recall.ids[recall.found])
    assert (SPEAKER[recall.ids[recall.found]] == SPEAKER[recall.found]).all()
    assert (recall.rows[~recall.found] == 0).all()
    assert (recall.ids[~recall.found] == -1).all()
    metrics = memory.metrics()
    assert metrics["speaker_accuracy"] == 1
    assert metrics["recording_accuracy"] < 0.5
    assert judged["nmi_speaker"] > 0.8
    assert judged["version"] == memory.version == 1


def test_metrics_by_hand() -> None:
    memory = _memory(queue=60)
    memory.remember(_everything(channel=1.0))
    judged = memory.refresh(3)
    ids = np.arange(0, N, 2)
    recall = memory.recall(ids, epoch=3)
    metrics = memory.metrics(reset=False)
    mine, other = ids[recall.found], recall.ids[recall.found]
    same_speaker, same_recording = (
        (SPEAKER[mine] == SPEAKER[other]).mean(),
        (RECORDING[mine] == RECORDING[other]).mean(),
    )
    assert 0 < same_recording < same_speaker
    assert metrics["coverage"] == pytest.approx(recall.found.mean())
    assert metrics["speaker_accuracy"] == pytest.approx(same_speaker)
    assert metrics["recording_accuracy"] == pytest.approx(same_recording)
    assert metrics["useful_rate"] == pytest.approx(same_speaker - same_recording)
    assert metrics["queue_fill"] == 1
    assert metrics["reference_fill"] == 1
    assert metrics["rejected"] == 0
    assignment = memory.state_dict()["clusters.assignment"]
    present = memory.state_dict()["positives.ids"]
    pools = [sum(assignment[j] == assignment[i] and j != i for j in present) for i in ids]
    assert metrics["pool_size"] == pytest.approx(np.mean(pools))
    assert metrics["clusters_used"] == pytest.approx(len(np.unique(assignment[present])) / (2 * SPEAKERS))
    sizes = sorted(int((assignment == cluster).sum()) for cluster in range(2 * SPEAKERS))
    assert [judged["cluster_smallest"], judged["cluster_largest"]] == [sizes[0], sizes[-1]]
    assert judged["cluster_median"] == (sizes[SPEAKERS - 1] + sizes[SPEAKERS]) / 2
    assert memory.metrics() == metrics
    assert "coverage" not in memory.metrics()


def test_what_a_clustering_says_of_itself() -> None:
    """Sizes by hand; stability is the NMI with the clustering before, by scikit-learn, also after a restart."""
    memory, resumed = _memory(), _memory()
    memory.remember(_everything(slice(0, N - 7)))  # the last seven have no reference
    first = memory.refresh(0)
    before = memory.state_dict()["clusters.assignment"]
    resumed.load_state_dict(memory.state_dict())
    for each in (memory, resumed):
        each.remember(_everything(channel=1.0))
    second, again = memory.refresh(1), resumed.refresh(1)
    after = memory.state_dict()["clusters.assignment"]
    for judged, assignment in ((first, before), (second, after)):
        sizes = np.array([(assignment == k).sum() for k in range(2 * SPEAKERS)])
        assert judged["cluster_largest"] == sizes.max()
        assert judged["empty_clusters"] == pytest.approx((sizes == 0).sum() / (2 * SPEAKERS))
    both = (before >= 0) & (after >= 0)
    assert both.sum() == N - 7 and "stability" not in first
    assert second["stability"] == pytest.approx(normalized_mutual_info_score(before[both], after[both]))
    assert again["stability"] == second["stability"] < 1
    assert {*first, *second, *memory.metrics()} <= set(UTTERANCE_FIGURES)


def test_without_labels_no_accuracy() -> None:
    memory = _memory()
    memory.remember(_everything(labels=False))
    judged = memory.refresh(0)
    memory.recall(np.arange(N), epoch=0)
    assert not {"nmi_speaker", "nmi_recording"} & judged.keys()
    assert not {"speaker_accuracy", "recording_accuracy", "useful_rate"} & memory.metrics().keys()


def test_nothing_before_the_first_refresh() -> None:
    memory = _memory()
    memory.remember(_everything())
    recall = memory.recall(np.arange(5), epoch=0)
    assert not recall.found.any()
    assert recall.rows.shape == (5, 3)
    assert memory.metrics()["coverage"] == 0


def test_without_a_reference_neither_found_nor_finding() -> None:
    memory = _memory()
    with_reference = np.arange(0, N, 2)
    memory.remember(_everything(with_reference))
    memory.remember(RememberArrays(np.arange(1, N, 2), positives=_positives()[1::2]))
    memory.refresh(0)
    recall = memory.recall(np.arange(N), epoch=0)
    assert not recall.found[1::2].any()
    assert recall.found[::2].mean() > 0.8
    assert (recall.ids[recall.found] % 2 == 0).all()


def test_draws_change_with_epoch_and_seed_only() -> None:
    memory, other = _memory(clusters=SPEAKERS), _memory(clusters=SPEAKERS, seed=2)
    for each in (memory, other):
        each.remember(_everything())
        each.refresh(0)
    ids = np.arange(N)
    first = memory.recall(ids, epoch=1)
    _same_recall(first, memory.recall(ids, epoch=1))
    assert (first.ids != memory.recall(ids, epoch=2).ids).mean() > 0.5
    assert (first.ids != other.recall(ids, epoch=1).ids).mean() > 0.5


@pytest.mark.parametrize("sampling", ["cluster", "nn", "speaker"])
def test_halves_in_rank_order_are_the_whole(sampling: Any) -> None:
    whole, halves = (_memory(queue=50, neighbours=2, sampling=sampling) for _ in range(2))
    random = np.random.default_rng(0)
    for epoch in range(2):
        for ids in random.permutation(N).reshape(-1, 24):
            first, second = ids[:12], ids[12:]
            recall = whole.recall(ids, epoch=epoch)
            parts = [halves.recall(part, epoch=epoch) for part in (first, second)]
            joined = RecallArrays(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("rows", "found", "ids")))
            _same_recall(recall, joined)
            whole.remember(_everything(ids))
            halves.remember(_everything(first))
            halves.remember(_everything(second))
        assert whole.refresh(epoch)["version"] == halves.refresh(epoch)["version"]
    _same_state(whole, halves)
    assert whole.metrics() == halves.metrics()


@pytest.mark.parametrize(
    "changes",
    [{}, {"neighbours": 2}, {"sampling": "nn", "neighbours": 3}, {"sampling": "centroid"}, {"sampling": "speaker"}],
)
@pytest.mark.parametrize("stop", [0, 3, 14, 25])
def test_resume_to_the_bit(changes: dict[str, Any], stop: int) -> None:
    """Steps, a refresh at every tenth; saved to .npz and loaded before step ``stop``, the rest is the same."""
    sizes: dict[str, Any] = {
        "utterances": N,
        "reference_dim": 32,
        "positive_dim": 32,
        "queue": 40,
        "clusters": 8,
        "seed": 4,
    }
    memory, resumed = UtteranceMemory(MemorySettings(**(sizes | changes))), None
    random = np.random.default_rng(3)
    for step in range(30):
        if step == stop:
            file = io.BytesIO()
            np.savez(file, **memory.state_dict())
            file.seek(0)
            resumed = UtteranceMemory(MemorySettings(**(sizes | changes)))
            resumed.remember(RememberArrays(np.arange(9), positives=np.ones((9, 32), dtype=np.float32)))  # must vanish
            with np.load(file, allow_pickle=False) as state:
                resumed.load_state_dict(dict(state))
        ids = random.integers(0, N, 20)
        rows = random.standard_normal((20, 32)).astype(np.float32)
        results = []
        for each in [memory] if resumed is None else [memory, resumed]:
            recall = each.recall(ids, epoch=step // 10)
            each.remember(RememberArrays(ids, rows, 2 * rows, SPEAKER[ids], RECORDING[ids]))
            judged = each.refresh(step // 10) if step % 10 == 9 else {}
            judged.pop("seconds", None)
            results.append((recall, judged, each.metrics(reset=step % 7 == 6)))
        if resumed is not None:
            _same_recall(results[0][0], results[1][0])
            assert results[0][1:] == results[1][1:]
    assert resumed is not None
    _same_state(memory, resumed)


def test_state_is_a_copy() -> None:
    memory = _memory()
    memory.remember(_everything())
    state = memory.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    memory.remember(RememberArrays(np.arange(5), -_references()[:5], _positives()[:5] + 9))
    memory.refresh(0)
    memory.recall(np.arange(5), epoch=0)
    assert all(np.array_equal(state[name], before[name]) for name in state)


def _changed(state: dict[str, np.ndarray], name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    return {k: v for k, v in ({**state, name: value}).items() if v is not None}


def test_strict_loading_names_what_is_wrong_and_changes_nothing() -> None:
    memory, target = _memory(), _memory(queue=30)
    memory.remember(_everything())
    memory.refresh(0)
    target.remember(_everything(slice(0, 40)))
    before = target.state_dict()
    small = _memory(queue=30)
    small.remember(_everything(slice(0, 20)))
    state = small.state_dict()
    twice, beyond = np.zeros(20, dtype=np.int32), state["positives.ids"] + np.int32(N)
    for wrong, message in [
        (_changed(state, "counters", None), "missing.*counters"),
        (_changed(state, "extra", np.zeros(1)), "unexpected.*extra"),
        (_changed(state, "references.rows", state["references.rows"][:5]), r"'references.rows' is float16 \(5, 32\)"),
        (_changed(state, "references.rows", state["references.rows"].astype(np.float32)), "float32.*expected float16"),
        (_changed(state, "positives.rows", state["positives.rows"][:7]), "'positives.rows'"),
        (_changed(state, "positives.ids", twice), "twice"),
        (_changed(state, "positives.ids", beyond), "ids must lie in"),
        (_changed(state, "clusters.assignment", np.full(N, 99, dtype=np.int32)), "names a cluster that does not exist"),
        (memory.state_dict(), "'positives.ids' holds 240, the queue 30"),
    ]:
        with pytest.raises(ValueError, match=message):
            target.load_state_dict(wrong)
        after = target.state_dict()
        assert all(np.array_equal(after[name], before[name]) for name in before)


def test_values_that_are_not_finite_are_left_out() -> None:
    memory = _memory()
    memory.remember(_everything())
    references, positives = _references()[:4].copy(), _positives()[:4] + 100
    references[1, 5], positives[2, 0] = np.nan, np.inf
    memory.remember(RememberArrays(np.arange(4), -references, positives))
    state = memory.state_dict()
    kept = unit_rows(_references()[:4]) * np.array([-1, 1, -1, -1])[:, None]
    np.testing.assert_allclose(state["references.rows"][:4], kept, atol=1e-3)
    row = dict(zip(state["positives.ids"].tolist(), state["positives.rows"][:, 0].tolist(), strict=True))
    assert [row[i] for i in range(4)] == [100, 101, 2, 103]
    assert memory.metrics()["rejected"] == 2
    memory.refresh(0)


@pytest.mark.parametrize("neighbours", [0, 1])
def test_centroid_sampling_gives_the_centroid(neighbours: int) -> None:
    memory = _memory(positive_dim=32, queue=5, clusters=9, seed=0, sampling="centroid", neighbours=neighbours)
    memory.remember(RememberArrays(np.arange(N - 1), _references()[:-1]))
    memory.refresh(0)
    recall = memory.recall(np.arange(N), epoch=0)
    state = memory.state_dict()
    own = state["clusters.assignment"][:-1]
    expected = own if neighbours == 0 else state["clusters.nearest"][own, 0]
    assert np.array_equal(recall.rows[:-1], state["clusters.centroids"][expected])
    assert recall.found.tolist() == [True] * (N - 1) + [False]
    assert (recall.ids == -1).all()
    metrics = memory.metrics()
    assert metrics["coverage"] == pytest.approx((N - 1) / N)


@pytest.mark.parametrize("shards", [1, 3])
def test_labels_are_the_numbers_of_the_clusters(shards: int) -> None:
    sizes: dict[str, Any] = {"utterances": N, "reference_dim": 32, "positive_dim": 1, "queue": 1, "clusters": 9}
    memory = UtteranceMemory(MemorySettings(**sizes, sampling="label"), shards=shards)
    memory.remember(RememberArrays(np.arange(N - 1), _references()[:-1]))
    assert not memory.recall(np.arange(N), epoch=0).found.any()
    figures = memory.refresh(0)
    recall, own = memory.recall(np.arange(N), epoch=0), memory.state_dict()["clusters.assignment"]
    assert recall.rows.shape == (N, 1) and np.array_equal(recall.rows[:-1, 0], own[:-1]) and len(set(own)) == 10
    assert recall.found.tolist() == [True] * (N - 1) + [False] and (recall.ids == -1).all()
    _same_recall(recall, memory.recall(np.arange(N), epoch=5))
    assert figures["clusters_used"] == 1 == memory.metrics()["clusters_used"]
    nearest = (_references()[:-1] @ memory.centroids().T).argmax(axis=1)
    assert memory.centroids().shape == (9, 32) and (nearest == own[:-1]).mean() > 0.95


def test_empty_batches() -> None:
    memory = _memory()
    memory.remember(_everything())
    memory.refresh(0)
    nobody = np.zeros(0, dtype=np.int64)
    assert memory.recall(nobody, epoch=0).rows.shape == (0, 3)
    memory.remember(RememberArrays(nobody, np.zeros((0, 32), np.float32), np.zeros((0, 3), np.float32)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 0}, "clusters must be at least 1"),
        ({"queue": 0}, "queue must be at least 1"),
        ({"neighbours": 2 * SPEAKERS}, "neighbours < clusters"),
        ({"clusters": N + 1}, "clusters <= utterances"),
        ({"neighbours": -1}, "neighbours must be at least 0"),
        ({"sampling": "nn"}, "neighbours must be at least 1"),
        ({"sampling": "other"}, "sampling must be"),
        ({"sampling": "label"}, "sampling label needs positive_dim 1 and neighbours 0"),
        ({"sampling": "centroid"}, "reference_dim equal to positive_dim"),
        ({"reference_dtype": "float64"}, "reference_dtype"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _memory(**changes)


def test_impossible_calls() -> None:
    memory = _memory()
    with pytest.raises(ValueError, match=f"0..{N - 1}, got 0..{N}"):
        memory.recall(np.array([0, N]), epoch=0)
    with pytest.raises(ValueError, match=r"positives have shape \(2, 4\), expected \(2, 3\)"):
        memory.remember(RememberArrays(np.arange(2), positives=np.zeros((2, 4), dtype=np.float32)))
    memory.remember(_everything(slice(0, 7)))
    with pytest.raises(ValueError, match="7 points cannot fill 20 clusters"):
        memory.refresh(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": "nn", "neighbours": 5},
        {"sampling": "nn", "neighbours": 5, "whiten": True},
        {"neighbours": 3, "whiten": True, "kmeans": "exact"},
        {"neighbours": 3, "overlapped": True, "kmeans": "exact"},
    ],
    ids=" ".join,
)
def test_on_a_device_as_on_the_cpu(changes: dict[str, Any]) -> None:
    """By the code for a GPU, see `rayssl.clustering.gpu`. Products of float16 part tight points otherwise."""
    found, judged = [], []
    for device in ("cpu", "cpu:0"):
        memory = _memory(device=device, reference_dtype="float32", **changes)
        memory.remember(_everything(slice(0, N - 20)))
        judged.append(memory.refresh(0))
        memory.recall(np.arange(N - 20), epoch=0)
        memory.remember(_everything(slice(N - 40, N)))
        if changes.get("sampling") != "nn":
            judged[-1] = memory.refresh(1)
        found.append(memory.recall(np.arange(N), epoch=1))
    if changes.get("sampling") == "nn":
        assert (found[0].ids == found[1].ids).mean() > 0.97
    else:
        assert judged[1]["nmi_speaker"] == pytest.approx(judged[0]["nmi_speaker"], abs=0.05)
        assert judged[1]["objective"] == pytest.approx(judged[0]["objective"], abs=0.02)
    assert (found[0].found == found[1].found).mean() > 0.9

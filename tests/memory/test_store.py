"""A memory whose rows are in several stores does what one with all of them does, whatever is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayssl.memory.pieces import Kind, Piece, cuts, limits, pieces_of
from rayssl.memory.utterances import index, store
from rayssl.memory.utterances.exchange import RememberArrays
from rayssl.memory.utterances.index import Clustering
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings, bytes_needed
from rayssl.memory.utterances.store import Store

N, D = 150, 6
SETTINGS: dict[str, Any] = {
    "utterances": N, "reference_dim": D, "positive_dim": D, "queue": 61, "clusters": 12, "seed": 5,
    "reference_dtype": "float32",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "own cluster": {},
    "neighbours": {"neighbours": 3, "skip_empty": True},
    "half": {"neighbours": 1, "reference_dtype": "float16", "positive_dtype": "float16"},
    "centroid": {"sampling": "centroid", "neighbours": 2},
    "speaker": {"sampling": "speaker"},
    "nn": {"sampling": "nn", "neighbours": 4},
    "nn whitened": {"sampling": "nn", "neighbours": 4, "whiten": True},
    "whitened": {"whiten": True},
    "merged": {"merged_from": 40, "neighbours": 1},
    "warm": {"warm_start": True},
    "overlapped": {"overlapped": True, "neighbours": 1},
    "overlapped, warm": {"overlapped": True, "warm_start": True},
    "overlapped, whitened": {"overlapped": True, "whiten": True},
    "overlapped, merged": {"overlapped": True, "merged_from": 40},
}


def step(random: np.random.Generator) -> tuple[np.ndarray, RememberArrays]:
    """Ids to recall, with repeats, and what is remembered: at times one kind of row, some of them not finite."""
    ids = random.integers(0, N, 20)
    centres = np.random.default_rng(1).standard_normal((12, D))
    rows = (centres[ids % 12] + 0.4 * random.standard_normal((20, D))).astype(np.float32)
    positives = random.standard_normal((20, D)).astype(np.float32)
    positives[random.integers(0, 20), 0] = random.choice([np.nan, np.inf, 1.0, 1.0])
    has = random.integers(0, 4)
    return random.integers(0, N, 16), RememberArrays(
        ids,
        None if has == 1 else rows,
        None if has == 2 else positives,
        (ids % 12).astype(np.int32),
        np.where(random.random(20) < 0.5, ids % 36, -1).astype(np.int32),
    )


def memory_of(changes: dict[str, Any], shards: int = 1) -> UtteranceMemory:
    return UtteranceMemory(MemorySettings(**{**SETTINGS, **changes}), shards=shards)


def life(memory: UtteranceMemory, random: np.random.Generator, first: int, last: int) -> list[Any]:
    """Steps, a refresh before every eighth; everything that can be seen of it."""
    seen: list[Any] = []
    for number in range(first, last):
        ids, remember = step(random)
        if number % 8 == 0 and number:
            seen.append({k: v for k, v in memory.refresh(number).items() if k != "seconds"})
        recall = memory.recall(ids, epoch=number // 8)
        seen.append({name: value.tolist() for name, value in vars(recall).items()})
        memory.remember(remember)
        seen.append(memory.metrics(reset=number % 5 == 4))
    return seen


def same_state(one: UtteranceMemory, other: UtteranceMemory) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def saved(memory: UtteranceMemory) -> list[Piece]:
    """As on a disk."""
    return [
        Piece(piece.kind, piece.number, piece.first, piece.end, {k: v.copy() for k, v in piece.arrays.items()})
        for piece in memory.snapshot()
    ]


def restore(memory: UtteranceMemory, pieces: list[Piece]) -> None:
    def read(kind: Kind, first: int, end: int) -> list[Piece]:
        return [piece for piece in pieces if piece.kind == kind and piece.first < end and first < piece.end]

    memory.restore(pieces[0].arrays, read)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shards", [3])
def test_any_number_of_stores(kind: str, shards: int) -> None:
    one, several = (memory_of(KINDS[kind], shards=count) for count in (1, shards))
    seen, also = (life(memory, np.random.default_rng(7), 0, 40) for memory in (one, several))
    assert seen == also
    same_state(one, several)
    found = [i for entry in seen if "found" in entry for i in entry["found"]]
    assert sum(found) > 150, "hardly anything was found: the test compares nothing"


def test_the_fast_clustering_of_references_of_which_some_are_missing() -> None:
    rows = np.random.default_rng(0).standard_normal((1500, 16)).astype(np.float32)
    ids = np.flatnonzero(np.arange(1500) % 100 < 97)
    many = {"utterances": 1500, "reference_dim": 16, "clusters": 300, "iterations": 3, "threads": 1}
    memories = [memory_of(many, shards=shards) for shards in (1, 4)]
    for memory in memories:
        memory.remember(RememberArrays(ids, rows[ids]))
        memory.refresh(0)
    one, other = (memory.index.clustering for memory in memories)
    # a product's last bit may depend on its shape, and the fast mode looks at blocks of each store's rows
    assert one.objective == pytest.approx(other.objective, rel=1e-6)
    np.testing.assert_array_equal(one.assignment, other.assignment)
    np.testing.assert_array_equal(one.centroids, other.centroids)
    assignment = one.assignment
    assert np.array_equal(assignment >= 0, np.isin(np.arange(1500), ids)) and len(np.unique(assignment)) == 301


def test_overlapped_brings_into_use_what_was_computed_from_the_epoch_before() -> None:
    """By the definition: a blocking memory, refreshed with the references of each epoch's start."""
    overlapped, used = memory_of({"overlapped": True}), []
    random, expected = np.random.default_rng(5), []
    for epoch in range(5):
        for _ in range(8):
            what = step(random)[1]
            overlapped.remember(what)
        blocking = memory_of({})
        state = {k: v for k, v in overlapped.state_dict().items() if not k.startswith("pending.")}
        blocking.load_state_dict(state)
        blocking.refresh(epoch)
        expected.append(blocking.index.clustering.assignment)
        version = overlapped.refresh(epoch)["version"]
        used.append((version, overlapped.index.clustering.assignment))
    assert [version for version, _ in used] == [1, 1, 2, 3, 4]
    for epoch in range(5):
        np.testing.assert_array_equal(used[epoch][1], expected[max(0, epoch - 1)])


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shards", [(1, 3), (3, 2)])
def test_saved_by_some_stores_and_restored_to_others(kind: str, shards: tuple[int, int]) -> None:
    """The rest of its life is that of a memory that was never saved."""
    whole, before, after = (memory_of(KINDS[kind], shards=count) for count in (1, *shards))
    random = np.random.default_rng(7)
    life(before, random, 0, 27)
    state = random.bit_generator.state
    life(after, np.random.default_rng(8), 0, 20)  # must vanish
    restore(after, saved(before))
    rest = life(after, random, 27, 50)
    random = np.random.default_rng(7)
    life(whole, random, 0, 27)
    assert random.bit_generator.state == state
    assert life(whole, random, 27, 50) == rest
    same_state(whole, after)


def test_pieces_do_not_depend_on_the_stores() -> None:
    memories = [memory_of({}, shards=shards) for shards in (1, 4)]
    for memory in memories:
        life(memory, np.random.default_rng(3), 0, 30)
    one, other = (saved(memory) for memory in memories)
    key = [(p.kind, p.number, p.first, p.end, sorted(p.arrays)) for p in one]
    assert sorted(key) == sorted((p.kind, p.number, p.first, p.end, sorted(p.arrays)) for p in other)
    by_name = {(p.kind, p.number): p for p in other}
    for piece in one:
        for name, array in piece.arrays.items():
            np.testing.assert_array_equal(array, by_name[piece.kind, piece.number].arrays[name], err_msg=name)


@pytest.mark.parametrize("total", [1, 3, 4, 150, 20_000, 70_001, 10_000_000])
def test_pieces_and_shares_cover_everything_once(total: int) -> None:
    bounds = cuts(total)
    assert bounds[0] == 0 and bounds[-1] == total and (np.diff(bounds) > 0).all()
    assert len(bounds) - 1 == min(total, max(4, min(64, total // 4096)))
    for shards in (1, 2, 3, 4, 7, 64):
        own = [pieces_of(bounds, shard, shards) for shard in range(shards)]
        assert [number for pieces in own for number in pieces] == list(range(len(bounds) - 1))
        starts = limits(total, shards)
        assert [bounds[pieces.start] for pieces in own] == starts[:-1].tolist()


def test_what_was_never_written_takes_no_room_in_a_piece() -> None:
    memory = memory_of({})
    memory.remember(RememberArrays(np.array([1, 40]), np.ones((2, D), np.float32), np.ones((2, D), np.float32)))
    kept = [piece for piece in memory.snapshot() if piece.kind != "index"]
    lengths = {kind: [len(p.arrays["rows"]) for p in kept if p.kind == kind] for kind in ("references", "positives")}
    assert lengths == {"references": [2, 4, 0, 0], "positives": [2, 0, 0, 0]}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_a_snapshot_is_of_its_moment_whatever_is_written_while_it_is_read(
    kind: str, shards: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two pieces come steps and clusterings; a memory that reads the pieces lives on as the first did."""
    monkeypatch.setattr(store, "BLOCK_BYTES", block)
    memory, random = memory_of(KINDS[kind], shards=shards), np.random.default_rng(5)
    life(memory, random, 0, 21)
    kept, pieces = memory.snapshot(), []
    expected = memory.state_dict()  # after the snapshot: it waits for a clustering that is under way
    later = np.random.default_rng(6)
    for at, piece in enumerate(kept):
        pieces.append(piece)
        life(memory, later, 22 + at % 9, 23 + at % 9)
    other = memory_of(KINDS[kind], shards=2)
    restore(other, pieces)
    found = other.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, array in expected.items() if not np.array_equal(found[name], array)] == []
    changed = memory.state_dict()
    assert any(not np.array_equal(changed[name], array) for name, array in expected.items()), "nothing was written"


def test_half_precision_gives_float32_and_leaves_out_what_it_cannot_hold() -> None:
    memory = memory_of({"positive_dtype": "float16", "clusters": 1})
    positives = np.full((3, D), [[1e-3], [7e4], [5.0]], dtype=np.float32)
    memory.remember(RememberArrays(np.arange(3), np.ones((3, D), np.float32), positives))
    memory.refresh(0)
    recall = memory.recall(np.array([0, 2]), epoch=0)
    assert recall.rows.dtype == np.float32 and recall.ids.tolist() == [2, 0]
    np.testing.assert_allclose(recall.rows[:, 0], [5, 1e-3], rtol=1e-3)
    assert memory.metrics()["rejected"] == 1


@pytest.mark.parametrize("wrong", ["rows", "dims", "dtype", "clusters"])
def test_what_does_not_fit_changes_nothing(wrong: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "rows": {"utterances": N + 1}, "dims": {"reference_dim": D + 1}, "clusters": {"clusters": 13},
        "dtype": {"positive_dtype": "float16"},
    }  # fmt: skip
    other, memory = memory_of(changes[wrong]), memory_of({}, shards=3)
    if wrong != "dims":
        life(other, np.random.default_rng(1), 0, 20)
    life(memory, np.random.default_rng(2), 0, 20)
    before = memory.state_dict()
    with pytest.raises(ValueError, match=r"memory state: '[a-z]+\.\w+' is .*, expected"):
        restore(memory, saved(other))
    after = memory.state_dict()
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []


def test_a_slot_with_anothers_row_is_not_taken_for_the_right_one() -> None:
    store = Store(MemorySettings(**SETTINGS))
    store.write_positives(np.array([3, 4]), np.array([10, 11]), np.ones((2, D), np.float32))
    rows, right = store.read(np.array([4, 3, 5]), np.array([11, 11, 12]))
    assert right.tolist() == [True, False, False] and rows.shape == (3, D)


def state_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def test_bytes_needed_are_those_of_the_arrays() -> None:
    settings = MemorySettings(**{**SETTINGS, "utterances": 4000, "queue": 2000, "neighbours": 2})
    index, store = bytes_needed(settings, 2)
    memory = UtteranceMemory(settings, shards=2)
    held = vars(memory.index.utterances), vars(memory.index.queue), vars(memory.index._layout)
    arrays = {id(a): a.nbytes for names in held for a in names.values() if isinstance(a, np.ndarray)}
    found = sum(arrays.values()) + memory.index.clustering.centroids.nbytes + memory.index.clustering.nearest.nbytes
    # the order of the queue comes with its first eviction, that of the members with the first clustering, and as much
    # again as a layout has is needed to sort it
    assert found + 4 * 2000 + 4 * 4000 + 12 * 4000 == pytest.approx(index, rel=0.01)
    rows = sum(array.nbytes for array in vars(memory.stores[0]._rows).values() if array is not None)
    assert rows == store
    copied = bytes_needed(replace(settings, overlapped=True), 2)[1]
    assert rows + memory.stores[0].rows()["references"].nbytes == copied


def test_a_state_of_before_clusters_were_merged_is_read() -> None:
    """It has the objective and one count; what was suggested is not known then."""
    now = Clustering(np.zeros(3, np.int32), np.eye(2, dtype=np.float32), np.zeros((2, 0), np.int32), 0.5, 1, 7)
    state = index.pending(now)
    assert index._clustering(state, "pending").suggested == 7
    state["pending.figures"] = state["pending.figures"][:2]
    read = index._clustering(state, "pending")
    assert (read.objective, read.repaired, read.suggested) == (0.5, 1, 0)

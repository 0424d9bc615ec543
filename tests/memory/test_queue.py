"""References and the positives queue against naive models, row by row."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from rayssl.clustering.points import unit_rows
from rayssl.memory.utterances import queue as queues
from rayssl.memory.utterances.queue import Utterances
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.store import Store


class PositivesQueue(queues.PositivesQueue):
    """With rows in its slots, as a store keeps them."""

    def __init__(self, utterances: int, capacity: int, dim: int) -> None:
        super().__init__(utterances, capacity)
        self.rows = np.zeros((self.capacity, dim), dtype=np.float32)

    def fill(self, ids: np.ndarray, rows: np.ndarray) -> None:
        slots = self.push(ids)
        self.rows[slots[slots >= 0]] = rows[slots >= 0]


class NaiveQueue:
    """The definition: utterances in the order in which they were last remembered; too many, and the oldest leaves."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: OrderedDict[int, np.ndarray] = OrderedDict()

    def push(self, ids: np.ndarray, rows: np.ndarray) -> None:
        for name, row in zip(ids.tolist(), rows, strict=True):
            self.rows.pop(name, None)
            self.rows[name] = row
            if len(self.rows) > self.capacity:
                self.rows.popitem(last=False)


def _same(queue: PositivesQueue, naive: NaiveQueue) -> None:
    ages = queue.by_age()
    assert queue.ids[ages].tolist() == list(naive.rows)
    if naive.rows:
        assert np.array_equal(queue.rows[ages], np.stack(list(naive.rows.values())))
    present = np.flatnonzero(queue.slot >= 0)
    assert sorted(present.tolist()) == sorted(naive.rows)
    assert np.array_equal(queue.ids[queue.slot[present]], present)
    assert queue.size == len(naive.rows)


@pytest.mark.parametrize("seed", range(40))
def test_queue_is_first_in_first_out_by_last_time(seed: int) -> None:
    random = np.random.default_rng(seed)
    utterances = int(random.integers(2, 40))
    capacity = int(random.integers(1, utterances + 3))
    queue, naive = PositivesQueue(utterances, capacity, 2), NaiveQueue(min(capacity, utterances))
    for _ in range(60):
        count = int(random.integers(0, 2 * capacity))  # with repeats, and often more than fit
        ids = random.integers(0, utterances, count)
        rows = random.standard_normal((count, 2)).astype(np.float32)
        queue.fill(ids, rows)
        naive.push(ids, rows)
        _same(queue, naive)


@pytest.mark.parametrize("capacity", [30, 64])
def test_epochs_without_repeats(capacity: int) -> None:
    """The real pattern: permutations of the corpus in batches. A queue of the whole corpus never forgets."""
    random = np.random.default_rng(1)
    queue, naive = PositivesQueue(64, capacity, 1), NaiveQueue(capacity)
    for epoch in range(5):
        for ids in random.permutation(64).reshape(8, 8):
            rows = np.full((8, 1), epoch, dtype=np.float32)
            queue.fill(ids, rows)
            naive.push(ids, rows)
            _same(queue, naive)
        assert queue.size == capacity


def test_parts_in_order_are_the_whole() -> None:
    random = np.random.default_rng(2)
    whole, parts = PositivesQueue(50, 20, 3), PositivesQueue(50, 20, 3)
    for _ in range(30):
        ids = random.integers(0, 50, 12)
        rows = random.standard_normal((12, 3)).astype(np.float32)
        whole.fill(ids, rows)
        parts.fill(ids[:5], rows[:5])
        parts.fill(ids[5:], rows[5:])
        for queue in (whole, parts):
            assert queue.size <= 20
        assert np.array_equal(whole.ids[whole.by_age()], parts.ids[parts.by_age()])
        assert np.array_equal(whole.rows[whole.by_age()], parts.rows[parts.by_age()])


def test_replace_forgets_what_was() -> None:
    queue = queues.PositivesQueue(9, 3)
    queue.push(np.array([1, 2, 3]))
    queue.replace(np.array([8, 2]), np.array([1, 0]))
    assert queue.ids[queue.by_age()].tolist() == [2, 8] and queues.ages_of(queue.written()).tolist() == [1, 0]
    assert np.flatnonzero(queue.slot >= 0).tolist() == [2, 8]
    queue.push(np.array([4, 5]))
    assert queue.ids[queue.by_age()].tolist() == [8, 4, 5]


@pytest.mark.parametrize("seed", range(5))
def test_replaced_by_its_own_state_it_goes_on_in_the_same_slots(seed: int) -> None:
    random = np.random.default_rng(seed)
    queue = queues.PositivesQueue(40, 15)
    for _ in range(10):
        queue.push(random.integers(0, 40, 6))
    other = queues.PositivesQueue(40, 15)
    other.push(np.arange(20))
    other.replace(queue.ids[: queue.size].copy(), queues.ages_of(queue.written()))
    for _ in range(30):
        ids = random.integers(0, 40, 6)
        assert np.array_equal(queue.push(ids), other.push(ids))
        assert np.array_equal(queue.slot, other.slot) and np.array_equal(queue.ids, other.ids)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_references_are_unit_rows_and_the_last_one_stays(dtype: str) -> None:
    settings = MemorySettings(utterances=5, reference_dim=2, positive_dim=1, queue=1, clusters=1, reference_dtype=dtype)
    store = Store(settings)
    store.write_references(np.array([3, 1, 3]), np.array([[1.0, 0], [3, 4], [0, 7e4]], dtype=np.float32))
    rows = store.rows()["references"]
    assert rows.dtype == dtype
    np.testing.assert_allclose(rows[[1, 3]], [[0.6, 0.8], [0, 1]], atol=1e-3 if dtype == "float16" else 1e-7)
    assert store.begin(None, copy=False).tolist() == [False, True, False, True, False]


def test_an_unknown_label_erases_nothing() -> None:
    known = Utterances(3)
    assert known.label(np.array([0, 1]), np.array([7, 8], dtype=np.int32), None)
    given = np.array([-1, 9, -1], dtype=np.int32), np.array([4, -1, -1], dtype=np.int32)
    assert known.label(np.array([0, 1, 2]), *given)
    assert known.speakers.tolist() == [7, 9, -1]
    assert known.recordings.tolist() == [4, -1, -1]
    assert not known.label(np.array([0, 1, 2]), *given) and not known.label(np.array([2]), None, None)


def test_unit_rows_copies_and_keeps_zeros() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    assert np.array_equal(unit_rows(x), np.array([[0.6, 0.8], [0, 0]], dtype=np.float32))
    assert x[0, 0] == 3

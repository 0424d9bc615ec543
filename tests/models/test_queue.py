"""The queue of rows: first in, first out, whatever the sizes; saved with its position."""

from __future__ import annotations

import pytest
import torch

from rayssl.models.queue import RowQueue


def rows(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None] * torch.tensor([1.0, -1.0])


def kept(queue: RowQueue) -> set[float]:
    return set(queue.rows[queue.filled][:, 0].tolist())


@pytest.mark.parametrize("sizes", [[3, 3, 3], [2, 5, 1, 4], [7], [8, 1], [1] * 20, [20, 3]])
def test_keeps_the_last_rows(sizes: list[int]) -> None:
    queue, done = RowQueue(7, 2), 0
    for size in sizes:
        queue.push(rows(done, size))
        done += size
        assert kept(queue) == set(range(max(0, done - 7), done))
        assert int(queue.pushed) == done
    assert torch.equal(queue.rows[:, 0], -queue.rows[:, 1])


def test_replaces_the_oldest_in_order() -> None:
    queue = RowQueue(5, 2)
    queue.push(rows(1, 3))
    assert queue.filled.tolist() == [True] * 3 + [False] * 2 and not queue.rows[3:].any()
    queue.push(rows(4, 3))
    assert queue.rows[:, 0].tolist() == [6, 2, 3, 4, 5] and queue.filled.all()


def test_state_is_saved_and_goes_on() -> None:
    queue, other = RowQueue(5, 2), RowQueue(5, 2)
    queue.push(rows(0, 4))
    other.load_state_dict(queue.state_dict(), strict=True)
    for each in (queue, other):
        each.push(rows(4, 3))
    assert set(queue.state_dict()) == {"rows", "pushed"} and not list(queue.parameters())
    assert torch.equal(queue.rows, other.rows) and torch.equal(queue.filled, other.filled)


def test_keeps_no_graph_and_its_own_precision() -> None:
    queue = RowQueue(4, 2)
    queue.push(rows(0, 2).bfloat16().requires_grad_())
    assert not queue.rows.requires_grad and queue.rows.dtype == torch.float32

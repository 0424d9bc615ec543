"""`made_ahead`: threads make items in order, a few in advance."""

from __future__ import annotations

import threading

import pytest

from rayssl.training.ahead import made_ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_in_order_and_so_many_in_advance(threads: int) -> None:
    asked = list[int]()

    def items() -> object:
        for k in range(7):
            asked.append(k)
            yield k

    for taken, made in enumerate(made_ahead(lambda k: 10 * k, items(), threads)):  # type: ignore[arg-type]
        assert made == 10 * taken
        assert asked == list(range(min(7, taken + 1 + threads)))
    assert taken == 6


def test_items_are_made_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]
    for k, _ in enumerate(made_ahead(lambda k: begun[k].set(), range(3), 1)):
        assert begun[min(k + 1, 2)].wait(10)
        assert k > 0 or not begun[2].is_set()


def test_an_error_comes_in_its_turn() -> None:
    made = made_ahead(lambda k: 6 // (2 - k), range(5), 2)
    assert [next(made), next(made)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert list(made) == []


def test_no_thread_is_left_by_one_that_stops_early() -> None:
    before = threading.active_count()
    made = made_ahead(str, range(100), 4)
    assert next(made) == "0" and threading.active_count() > before
    made.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before

"""The histogram of past pseudo-labels: which window a step is told of, what comes late, resume."""

from __future__ import annotations

import numpy as np
import pytest

from rayssl.memory.classes.windows import Windows

LENGTH = 5


def counts(*of_classes: int) -> np.ndarray:
    return np.array([*of_classes, *[0] * (3 - len(of_classes))])


def test_a_step_is_told_of_the_last_closed_window() -> None:
    kept, told = Windows(3, LENGTH), []
    for step in range(3 * LENGTH):
        told.append(kept.before(step).tolist())
        kept.add(step, counts(1, step))
    assert told[:LENGTH] == [[0, 0, 0]] * LENGTH
    assert told[LENGTH : 2 * LENGTH] == [[LENGTH, 0 + 1 + 2 + 3 + 4, 0]] * LENGTH
    assert told[2 * LENGTH :] == [[LENGTH, 5 + 6 + 7 + 8 + 9, 0]] * LENGTH


def test_late_counts_reach_the_last_closed_window_and_no_older_one() -> None:
    kept = Windows(3, LENGTH)
    kept.add(4, counts(1))
    assert kept.before(5).tolist() == [1, 0, 0]  # closes window 0, though a slow rank is still at step 4
    kept.add(4, counts(0, 2))
    assert kept.before(5).tolist() == [1, 2, 0]
    kept.add(5, counts(5))
    kept.add(10, counts(7))  # closes window 1
    kept.add(4, counts(8, 1))
    kept.add(9, counts(0, 3))
    assert kept.before(10).tolist() == [5, 3, 0] and kept.before(15).tolist() == [7, 0, 0]
    assert kept.dropped == 8 + 1


def test_a_slow_ranks_recall_is_of_its_own_step() -> None:
    kept = Windows(3, LENGTH)
    for step, count in ((2, 1), (7, 2), (11, 3)):
        kept.add(step, counts(count))
    assert [kept.before(step)[0] for step in (12, 8, 3)] == [2, 1, 0]
    kept.before(15)
    assert [kept.before(step)[0] for step in (16, 12, 8)] == [3, 2, 0]  # of step 8 nothing is known any more


@pytest.mark.parametrize("ahead", [2, 3, 4, 50])
def test_windows_that_nothing_was_counted_in_are_empty(ahead: int) -> None:
    kept = Windows(3, LENGTH)
    kept.add(3, counts(1))
    assert not kept.before(ahead * LENGTH).any()
    kept.add(ahead * LENGTH, counts(4))
    assert kept.before((ahead + 1) * LENGTH)[0] == 4


def test_nothing_to_count_closes_a_window_too() -> None:
    kept = Windows(3, LENGTH)
    kept.add(4, counts(1))
    kept.add(10, None)
    kept.add(4, counts(1))
    assert kept.dropped == 1 and kept.before(5)[0] == 1


def test_the_same_after_a_resume_anywhere() -> None:
    whole, kept, told = Windows(3, LENGTH), Windows(3, LENGTH), []
    for step in (0, 3, 6, 5, 4, 12, 9, 3, 30, 31, 37):
        resumed = Windows(3, LENGTH)
        resumed.check(kept.state_dict())
        resumed.load_state_dict(kept.state_dict())
        kept = resumed
        for one in (whole, kept):
            one.add(step, counts(step, 1))
        told.append([one.before(step + 2).tolist() for one in (whole, kept)])
    assert all(one == other for one, other in told) and whole.dropped == kept.dropped > 0


def test_a_step_below_zero_changes_nothing() -> None:
    kept = Windows(3, LENGTH)
    for call in (lambda: kept.add(-1, counts(1)), lambda: kept.before(-1)):
        with pytest.raises(ValueError, match="step must be at least 0, got -1"):
            call()
    assert not kept.state_dict()["windows.counts"].any()

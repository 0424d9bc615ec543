from __future__ import annotations

import pytest

from rayssl.data.joining import join


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([10, 10], [[0, 1]]),
        ([20, 25], [[0], [1]]),
        ([10, 10, 10], [[0, 1, 2]]),  # the rest joins the utterance before it
        ([15, 15, 30, 5], [[0, 1], [2, 3]]),
        ([5], [[0]]),
        ([], []),
    ],
)
def test_groups_are_consecutive_and_long_enough(lengths: list[int], groups: list[list[int]]) -> None:
    assert join(lengths, 20) == groups

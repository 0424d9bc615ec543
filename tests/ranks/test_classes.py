"""The memory of classes without Ray: ranks that keep different numbers of rows are answered as one rank, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import ClassRemember
from rayssl.training.context import InProcessClasses
from rayssl.training.inputs import to_classes

pytestmark = pytest.mark.ranks

BATCH, STEPS = 12, 8
SETTINGS = ClassSettings(classes=4, dim=3, length=5, window=2, anchors=4)
Answers = list[dict[str, np.ndarray]]


def given() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Features, labels and predictions of global batches: class 3 is rare, and a third of the rows have no label.

    Of the third batch, the second half has none at all; of the fifth, nothing has.
    """
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        labels = torch.multinomial(torch.tensor([0.4, 0.3, 0.25, 0.05]), BATCH, True, generator=generator)
        labels[torch.rand(BATCH, generator=generator) < 1 / 3] = -1
        labels[{2: BATCH // 2, 4: 0}.get(step, BATCH) :] = -1
        predicted = torch.randint(4, (BATCH,), generator=generator)
        yield torch.randn(BATCH, 3, generator=generator), labels, predicted


def recalls(rank: int, world: int) -> Answers:
    """What this rank is answered in each step, as the loop asks: first features, then counts."""
    memory, answers = InProcessClasses(ClassMemory(SETTINGS)), []
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step, (features, labels, predicted) in enumerate(given()):
        answer = memory.exchange(to_classes(ClassRemember(features[own], labels[own]), step), step).result()
        counts = torch.bincount(predicted[own], minlength=4)
        memory.exchange(to_classes(ClassRemember(counts=counts), step), None).result()
        assert answer is not None
        answers.append(dict(vars(answer)))
    return answers


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_are_answered_as_one_rank_is(ranks: Callable[..., list[Answers]], world: int) -> None:
    expected = recalls(0, 1)
    filled = [answer["filled"].tolist() for answer in expected]
    assert filled[4] == filled[3] and filled[-1][:3] == [4, 4, 4] and 0 < filled[-1][3] < 4
    for answers in ranks(recalls, world=world):
        for mine, theirs in zip(answers, expected, strict=True):
            assert mine.keys() == theirs.keys()
            for name, array in theirs.items():
                np.testing.assert_array_equal(mine[name], array, err_msg=name)

"""The memory of classes without Ray: ranks that keep different numbers of rows are answered as one rank, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import ClassRemember
from rayssl.training.classes import ClassQueues, HeldClasses
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
        memory.remember(to_classes(ClassRemember(features[own], labels[own]), step)()).result()
        answer = memory.memory.recall(step)
        counts = torch.bincount(predicted[own], minlength=4)
        memory.remember(to_classes(ClassRemember(counts=counts), step)()).result()
        answers.append(dict(vars(answer)))
    return answers


def held(rank: int, world: int) -> tuple[Answers, Answers]:
    """The same on the device of this rank, and the state of the owner after each step."""
    memory = ClassMemory(SETTINGS)
    classes, answers, states = HeldClasses(SETTINGS, InProcessClasses(memory), torch.device("cpu")), [], []
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step, (features, labels, predicted) in enumerate(given()):
        answer = classes.recall(ClassRemember(features[own], labels[own]), step)
        counts = torch.bincount(predicted[own], minlength=4)
        classes.hand_over(classes.leaving(ClassRemember(counts=counts), step), wait=True)
        answers.append({name: tensor.numpy().copy() for name, tensor in vars(answer).items()})
        states.append(memory.state_dict())
    return answers, states


def test_queues_on_the_device_answer_as_the_memory_does(ranks: Callable[..., list[Any]]) -> None:
    """On every rank, with one request to the owner in a step in place of two; and the owner's state is the same."""
    expected, (one, states) = recalls(0, 1), held(0, 1)
    memory = ClassMemory(SETTINGS)
    for step, (features, labels, predicted) in enumerate(given()):
        memory.remember(to_classes(ClassRemember(features, labels), step)())
        memory.remember(to_classes(ClassRemember(counts=torch.bincount(predicted, minlength=4)), step)())
        for name, array in memory.state_dict().items():
            np.testing.assert_array_equal(states[step][name], array, err_msg=name)
    for mine, theirs in zip(one, expected, strict=True):
        for name, array in theirs.items():
            atol = 1e-6 if name == "prototypes" else 0  # the sum has another order
            np.testing.assert_allclose(mine[name], array, rtol=0, atol=atol, err_msg=name)
    for answers, own in ranks(held, world=2):
        for mine, theirs in ((answers, one), (own, states)):
            for each, other in zip(mine, theirs, strict=True):
                for name, array in other.items():
                    np.testing.assert_array_equal(each[name], array, err_msg=name)


def test_a_row_that_is_not_finite_and_a_label_of_no_class_stay_out() -> None:
    queues = ClassQueues(SETTINGS, torch.device("cpu"))
    rows = torch.arange(15.0).reshape(5, 3)
    rows[1, 0], rows[2, 2] = torch.nan, torch.inf
    queues.push(rows, torch.tensor([1, 1, 1, 4, -1]))
    answer = queues.recall(0)
    assert answer.filled.tolist() == [0, 1, 0, 0] and answer.present.tolist() == [False, True, False, False]
    assert answer.prototypes[1].tolist() == [0, 1, 2] and answer.prototypes.isfinite().all()


@pytest.mark.parametrize("rows", [3, 12, 40])
def test_queues_that_overflow_in_one_call(rows: int) -> None:
    """Queues of five rows, calls with more rows of a class than that, and windows that are skipped."""
    memory, queues = ClassMemory(SETTINGS), ClassQueues(SETTINGS, torch.device("cpu"))
    generator = torch.Generator().manual_seed(rows)
    for step in (0, 1, 2, 5, 6, 12):
        features, labels = torch.randn(rows, 3, generator=generator), torch.randint(-1, 3, (rows,), generator=generator)
        memory.remember(to_classes(ClassRemember(features, labels), step)())
        queues.push(features, labels)
        counts = torch.randint(9, (4,), generator=generator)
        answers = vars(memory.recall(step)), vars(queues.recall(step))
        for name, array in answers[0].items():
            np.testing.assert_allclose(answers[1][name].numpy(), array, rtol=0, atol=1e-6, err_msg=name)
        memory.remember(to_classes(ClassRemember(counts=counts), step)())
        queues.count(counts, step)
    again = ClassQueues(SETTINGS, torch.device("cpu"))
    again.load(memory.state_dict())
    for name, tensor in vars(queues.recall(13)).items():
        assert torch.equal(vars(again.recall(13))[name], tensor), name


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

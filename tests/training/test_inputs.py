"""What goes to the memory of classes and comes from it: rows without a label stay out, and tensors are on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import ClassRemember
from rayssl.training.inputs import to_classes

SETTINGS = ClassSettings(classes=4, dim=3, length=5, anchors=2)


def test_rows_without_a_label_are_left_out_in_order() -> None:
    features = torch.arange(18.0).reshape(6, 3).requires_grad_()
    labels, counts = torch.tensor([2, -1, 0, -1, -1, 3]), torch.tensor([1, 0, 5, 2])
    sent = to_classes(ClassRemember(features, labels, counts), 7)()
    assert sent.features is not None and sent.counts is not None
    assert sent.step == 7 and sent.labels.tolist() == [2, 0, 3] and sent.counts.tolist() == [1, 0, 5, 2]
    assert sent.features.tolist() == features[[0, 2, 5]].tolist() and sent.features.dtype == np.float32
    memory = ClassMemory(SETTINGS)
    memory.remember(sent)
    assert memory.pushed.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("count", [0, 1, 6])
def test_nobody_scored_the_batch(count: int) -> None:
    """A night without a label on this rank: nothing to store, and no error."""
    sent = to_classes(ClassRemember(torch.ones(count, 3), torch.full((count,), -1)), 0)()
    assert sent.features is not None and sent.features.shape == (0, 3) and sent.labels.shape == (0,)
    memory = ClassMemory(SETTINGS)
    memory.remember(sent)
    assert not memory.pushed.any()


def test_all_scored_or_nothing_to_store() -> None:
    features, labels = torch.randn(4, 3, dtype=torch.bfloat16), torch.tensor([0, 3, 3, 1])
    sent = to_classes(ClassRemember(features, labels), 0)()
    assert sent.features is not None and sent.counts is None
    assert sent.features.tolist() == features.float().tolist() and sent.labels.tolist() == labels.tolist()
    sent = to_classes(ClassRemember(counts=torch.ones(4, dtype=torch.long)), 3)()
    assert sent.features is None and sent.labels.shape == (0,)
    ClassMemory(SETTINGS).remember(sent)


@pytest.mark.parametrize("label", [-2, 4])
def test_a_label_of_no_class_is_still_an_error(label: int) -> None:
    sent = to_classes(ClassRemember(torch.ones(2, 3), torch.tensor([-1, label])), 0)()
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.3, got {label}"):
        ClassMemory(SETTINGS).remember(sent)

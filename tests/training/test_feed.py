"""What a device cuts from the shipped samples is what NumPy cuts; batches come in order, and errors reach the loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.errors import CorpusError
from rayssl.training import feed
from rayssl.training.inputs import batch_of, make_views
from rayssl.views.packed import Packed
from rayssl.views.recipes import Segment
from tests.views.test_packed import SIZES, STEPS, packed_of

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def some(sizes: list[int], count: int = 1) -> list[Packed]:
    random = np.random.default_rng(len(sizes))
    return [packed_of(random, sizes)[0] for _ in range(count)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_device_cuts_the_same_segments(sizes: list[int]) -> None:
    (made,) = some(sizes)
    for part, raw in zip(made.split(), made.batches(), strict=True):
        found = feed.on_device(part, CPU)
        assert found.keys() == made.segments.keys() | made.columns.keys()
        for name, tensor in found.items():
            np.testing.assert_array_equal(tensor.numpy(), raw[name])
            assert tensor.dtype == (torch.int16 if name in made.segments else torch.int64)


def test_a_placed_batch_is_the_same_input() -> None:
    """Views and ids do not depend on which of the two has cut them."""
    (made,) = some([40, 10])
    segments = [Segment(name=name, seconds=size / 16000) for name, size in made.segments.items()]
    for part, raw in zip(made.split(), made.batches(), strict=True):
        placed = part.facts() | {"placed": feed.on_device(part, CPU)}
        assert placed.keys() == raw.keys() - made.segments.keys() | {"placed"}
        views = [make_views(r, segments, torch.nn.ModuleDict(), seed=3, device=CPU) for r in (raw, placed)]
        for name in made.segments:
            assert torch.equal(views[0][name].wave, views[1][name].wave)
        one, other = batch_of(raw, CPU, 7), batch_of(placed, CPU, 7)
        for field in ("ids", "speakers", "recordings", "labels", "truth"):
            assert torch.equal(getattr(one, field), getattr(other, field))


def test_on_the_cpu_batches_are_those_of_the_rows() -> None:
    rows = some([40, 10], 3)
    expected = [raw for row in rows for raw in row.batches()]
    assert_equal(list(feed.placed(iter(rows), CPU)), expected)
    with pytest.raises(CorpusError, match="the third"):
        list(feed.placed(breaking(rows[:2]), CPU))


@needs_gpu
def test_on_a_gpu_batches_are_those_of_the_rows() -> None:
    rows = some([40, 10], 3)
    device = torch.device("cuda", 0)
    found = list(feed.placed(iter(rows), device))
    for raw in found:
        raw |= {name: tensor.cpu().numpy() for name, tensor in raw.pop("placed").items()}
    assert_equal(found, [raw for row in rows for raw in row.batches()])
    taken = feed.placed(breaking(rows[:2]), device)
    assert len([next(taken) for _ in range(2 * STEPS)]) == 2 * STEPS
    with pytest.raises(CorpusError, match="the third"):
        next(taken)
    early = feed.placed(iter(rows), device)
    next(early)
    del early  # ends its thread
    assert not [thread for thread in threading.enumerate() if thread.name == "rayssl-feed"]


def breaking(rows: list[Packed]) -> Iterator[Packed]:
    yield from rows
    raise CorpusError("the third is damaged")


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)

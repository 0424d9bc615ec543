"""What travels is the union of an utterance's segments; what is cut from it is what is cut from whole utterances."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayssl.views.packed import INTEGERS, Packed, Spans

STEPS, BATCH = 3, 7
ROWS = STEPS * BATCH


def wrapped(pcm: np.ndarray, start: int, size: int) -> np.ndarray:
    """``size`` samples from ``start`` on; after the last comes the first."""
    return np.array([pcm[(start + k) % len(pcm)] for k in range(size)], pcm.dtype)


def drawn(random: np.random.Generator, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths ``[n]`` and starts ``[n, segments]``: anywhere, and those where segments touch, nest or are equal."""
    most = max(sizes)
    lengths = np.concatenate([[1, most - 1, most, most + 1], random.integers(1, 5 * most, ROWS - 4)])
    lengths = np.maximum(lengths, 1)
    room = lengths[:, None] - np.array(sizes)
    starts = np.floor(random.random((ROWS, len(sizes))) * np.where(room >= 0, room + 1, lengths[:, None])).astype(int)
    for row in range(ROWS // 2, ROWS):
        ordered, at = random.permutation(len(sizes)), 0
        for j in ordered:  # each begins where the last one ends, or one sample before or after, or with it
            last = at
            at = min(max(0, at + int(random.integers(-1, 2))), max(0, int(lengths[row]) - sizes[j]))
            starts[row, j] = at
            at = last if random.random() < 0.3 else at + sizes[j]
    return lengths, starts


def packed_of(random: np.random.Generator, sizes: list[int]) -> tuple[Packed, list[np.ndarray], np.ndarray, Spans]:
    """A `Packed`, the whole utterances, where segments begin in these, and the spans."""
    lengths, starts = drawn(random, sizes)
    whole = [random.integers(-32768, 32768, length).astype(np.int16) for length in lengths.tolist()]
    spans = Spans.of(starts, sizes, lengths)
    shipped = [np.concatenate([pcm[a:b] for a, b in parts]) for pcm, parts in zip(whole, spans.parts, strict=True)]
    assert [len(part) for part in shipped] == spans.lengths.tolist()
    columns: dict[str, np.ndarray] = {"id": random.integers(0, 1 << 40, ROWS)}
    columns |= {name: random.integers(-1, 99, ROWS).astype(np.int32) for name in INTEGERS}
    named = {f"s{j}": size for j, size in enumerate(sizes)}
    where = (2, 5, STEPS, 1, False)
    ends = np.cumsum(spans.lengths)
    made = Packed(*where, columns, np.concatenate(shipped), ends, named, spans.starts.astype(np.int32))
    return made, whole, starts, spans


SIZES = [[40], [40, 40], [10, 40], [40, 10, 100], [20, 20, 20, 20, 80, 80], [1, 3, 2, 1, 5, 2, 1, 1]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_segments_are_those_of_whole_utterances(sizes: list[int]) -> None:
    random = np.random.default_rng(len(sizes))
    for _ in range(6):
        made, whole, starts, _ = packed_of(random, sizes)
        found = list(made.batches())
        assert [(raw["epoch"], raw["step"], raw["rank"], raw["fill"]) for raw in found] == [
            (2, 5 + k, 1, False) for k in range(STEPS)
        ]
        for name, column in made.columns.items():
            np.testing.assert_array_equal(np.concatenate([raw[name] for raw in found]), column)
        for j, size in enumerate(sizes):
            cuts = np.concatenate([raw[f"s{j}"] for raw in found])
            assert cuts.dtype == np.int16
            for row in range(ROWS):
                np.testing.assert_array_equal(cuts[row], wrapped(whole[row], starts[row, j], size))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_is_shipped_is_the_union_of_the_segments(sizes: list[int]) -> None:
    """Each sample once; an utterance shorter than a segment whole."""
    random = np.random.default_rng(len(sizes))
    most = 0
    for _ in range(6):
        made, whole, starts, spans = packed_of(random, sizes)
        for row, parts in enumerate(spans.parts):
            flat = [sample for start, stop in parts for sample in range(start, stop)]
            used = {start + k for start, size in zip(starts[row].tolist(), sizes, strict=True) for k in range(size)}
            expected = range(len(whole[row])) if len(whole[row]) < max(sizes) else sorted(used)
            assert flat == list(expected)
            assert all(one[1] < other[0] for one, other in pairwise(parts))  # apart
            most = max(most, len(parts))
        assert len(made.pcm) == sum(stop - start for parts in spans.parts for start, stop in parts)
    assert most == 1 if len(sizes) == 1 else most >= 2


def test_batches_are_copies() -> None:
    """The block in the object store is released, and cannot be written to."""
    made, *_ = packed_of(np.random.default_rng(0), [40, 10])
    for array in (made.pcm, *made.columns.values()):
        array.flags.writeable = False
    for raw in made.batches():
        for array in (value for value in raw.values() if isinstance(value, np.ndarray)):
            assert array.flags.writeable
            assert not any(np.shares_memory(array, held) for held in (made.pcm, *made.columns.values()))


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("fill", [False, True])
def test_a_table_holds_it_without_a_copy(fill: bool) -> None:
    made, *_ = packed_of(np.random.default_rng(0), [40, 10, 100])
    made = replace(made, fill=fill)
    table = made.table()
    assert table.num_rows == 1
    found = Packed.of(table)
    arrays = {"pcm": made.pcm, "ends": made.ends, "starts": made.starts, **made.columns}
    again: dict[str, Any] = {"pcm": found.pcm, "ends": found.ends, "starts": found.starts, **found.columns}
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].shape == array.shape
        np.testing.assert_array_equal(again[name], array)
        assert address(again[name]) == address(array), name
    for name in ("epoch", "first_step", "steps", "rank", "fill", "segments"):
        assert getattr(found, name) == getattr(made, name)


def test_a_table_may_be_a_part_of_one_or_come_from_another_process() -> None:
    """Ray slices and concatenates blocks, and sends them as Arrow's format."""
    one, two = (packed_of(np.random.default_rng(seed), [40, 10])[0] for seed in (1, 2))
    both = pa.concat_tables([one.table(), two.table()]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, both.schema) as writer:
        writer.write_table(both)
    sent = pa.ipc.open_stream(sink.getvalue()).read_all()
    for table in (both, sent):
        for at, made in enumerate((one, two)):
            found = Packed.of(table.slice(at, 1))
            np.testing.assert_array_equal(found.pcm, made.pcm)
            np.testing.assert_array_equal(found.starts, made.starts)
            assert found.segments == made.segments
            for name, column in made.columns.items():
                np.testing.assert_array_equal(found.columns[name], column)


def test_a_batch_alone_is_a_view() -> None:
    made, *_ = packed_of(np.random.default_rng(0), [40, 10])
    found = list(made.split())
    assert len(found) == STEPS and all(part.steps == 1 for part in found)
    assert [part.first_step for part in found] == [5, 6, 7]
    assert all(np.shares_memory(part.pcm, made.pcm) for part in found)
    np.testing.assert_array_equal(np.concatenate([part.pcm for part in found]), made.pcm)
    assert all(part.ends[-1] == len(part.pcm) and len(part.ends) == BATCH for part in found)

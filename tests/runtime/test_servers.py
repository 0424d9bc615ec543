"""An actor of a memory joins what ranks say; the memory is then as if each had called it, in rank order."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

import numpy as np
import pytest

from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.memory.utterances.joining import divided, joined
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory.relay import Part
from rayssl.runtime.memory.servers import Server

N, WORLD, CALLS = 60, 4, 12
SETTINGS = MemorySettings(utterances=N, reference_dim=3, positive_dim=3, queue=25, clusters=5, seed=3, threads=1)


def _calls(mixed: bool) -> list[list[Part]]:
    """Of each call, the parts of all ranks: up to three steps, utterances that come twice, some that ask nothing."""
    random = np.random.default_rng(7)
    calls = []
    for call in range(1, CALLS + 1):
        parts = []
        for rank in range(WORLD):
            steps = []
            for _ in range(random.integers(0, 4)):
                ids = random.integers(0, N, random.integers(1, 6))
                labels = (None, None) if mixed and random.random() < 0.3 else (ids.astype(np.int32), None)
                references = None if mixed and random.random() < 0.3 else _rows(random, len(ids), 3)
                steps.append(RememberArrays(ids, references, _rows(random, len(ids), 3), *labels))
            asked = None if random.random() < 0.2 else random.integers(0, N, random.integers(0, 6))
            parts.append(Part(rank, steps, asked, call))
        calls.append(parts)
    return calls


def _rows(random: np.random.Generator, count: int, width: int) -> np.ndarray:
    rows = random.standard_normal((count, width)).astype(np.float32)
    rows[random.random(count) < 0.1] = np.nan  # is not kept
    return rows


def _one_by_one(memory: UtteranceMemory, parts: list[Part]) -> list[RecallArrays | None]:
    for step in range(4):
        for part in parts:
            if step < len(part.remember):
                memory.remember(part.remember[step])
    return [None if part.ids is None else memory.recall(part.ids, epoch=part.epoch) for part in parts]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("sampling", ["cluster", "centroid", "nn"])
def test_joined_as_one_by_one(sampling: Any, mixed: bool) -> None:
    settings = MemorySettings(**{**SETTINGS.__dict__, "sampling": sampling, "neighbours": int(sampling == "nn")})
    alone, random = UtteranceMemory(settings), np.random.default_rng(1)

    async def run() -> None:
        server = Server(settings, WORLD, strict=True)
        for call, parts in enumerate(_calls(mixed), 1):
            groups = [parts[2:], parts[:2]] if call % 2 else [[parts[rank]] for rank in random.permutation(WORLD)]
            answered = await asyncio.gather(*(server.exchanges(call, group) for group in groups))
            answers = dict(zip([part.rank for group in groups for part in group], chain(*answered), strict=True))
            for rank, theirs in enumerate(_one_by_one(alone, parts)):
                same(answers[rank], theirs)
            if call in (4, 8):
                assert (await server.refresh(call)).keys() == alone.refresh(call).keys()
        for name, array in server.memory.state_dict().items():
            assert np.array_equal(array, alone.state_dict()[name]), name
        figures = await server.metrics()
        assert figures.pop("staleness_steps") == 0.0
        assert figures == alone.metrics()

    asyncio.run(run())


def same(mine: RecallArrays | None, theirs: RecallArrays | None) -> None:
    if mine is None or theirs is None:
        assert mine is theirs
        return
    for name in ("rows", "found", "ids"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


def test_joined_is_divided_again() -> None:
    random = np.random.default_rng(0)
    parts = [RememberArrays(np.arange(size), None, _rows(random, size, 3)) for size in (2, 0, 5)]
    (whole,) = joined(parts)
    assert len(whole.ids) == 7 and whole.references is None
    for part, again in zip(parts, divided(whole, [2, 0, 5]), strict=True):
        assert np.array_equal(part.ids, again.ids) and again.references is None
        assert part.positives is not None and again.positives is not None
        assert np.array_equal(part.positives, again.positives, equal_nan=True)


def test_parts_with_other_fields_stay_as_they_are() -> None:
    parts = [RememberArrays(np.arange(2)), RememberArrays(np.arange(2), positives=np.zeros((2, 3), np.float32))]
    assert joined(parts) == parts

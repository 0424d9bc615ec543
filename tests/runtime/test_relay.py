"""A relay makes one call of the calls of its node's ranks, in their order, and brings each rank its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from rayssl.memory.utterances.exchange import RecallArrays
from rayssl.runtime.memory.relay import Part, Relay, by_node


def answer(rank: int, call: int) -> RecallArrays:
    return RecallArrays(np.full((1, 2), rank, np.float32), np.ones(1, bool), np.array([call]))


def test_joins_calls_whatever_the_order_in_which_they_come() -> None:
    made: list[tuple[int, list[int]]] = []

    def send(call: int, parts: Sequence[Part]) -> list[RecallArrays | None]:
        made.append((call, [part.rank for part in parts]))
        return [answer(part.rank, call) for part in parts]

    async def run() -> list[RecallArrays | None]:
        relay = Relay([7, 4], send)
        calls = [(2, 4), (1, 7), (2, 7), (1, 4)]  # the second is whole before the first
        return await asyncio.gather(*(relay.exchange(*call, [], None, 0) for call in calls))

    answers = asyncio.run(run())
    assert made == [(1, [4, 7]), (2, [4, 7])]
    assert [(int(each.rows[0, 0]), int(each.ids[0])) for each in answers if each] == [(4, 2), (7, 1), (7, 2), (4, 1)]


def test_an_error_reaches_every_rank_and_missing_names_who_is_waited_for() -> None:
    def send(call: int, parts: Sequence[Part]) -> list[RecallArrays | None]:
        raise ValueError("ids must lie in 0..9")

    async def run() -> None:
        relay = Relay([0, 1, 2], send)
        assert await relay.missing() == {}
        first = [asyncio.ensure_future(relay.exchange(1, rank, [], None, 0)) for rank in (0, 2)]
        await asyncio.sleep(0)
        assert list(await relay.missing()) == [1]
        results = await asyncio.gather(*first, relay.exchange(1, 1, [], None, 0), return_exceptions=True)
        assert [str(each) for each in results] == ["ids must lie in 0..9"] * 3
        assert await relay.missing() == {}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("nodes", "groups"),
    [
        ("aaaa", {}),
        ("abcd", {}),
        ("aabb", {"a": [0, 1], "b": [2, 3]}),
        ("abab", {"a": [0, 2], "b": [1, 3]}),
        ("aab", {"a": [0, 1]}),
    ],
)
def test_nodes_of_several_ranks_have_a_relay(nodes: str, groups: dict[str, list[int]]) -> None:
    assert by_node(list(nodes)) == groups

"""The order in which an actor applies calls that come in any order."""

from __future__ import annotations

import asyncio

import pytest

from rayssl.runtime.memory.rounds import Rounds

Part = str
Given = tuple[int, dict[int, Part]]


class Handler:
    """Answers each part with itself in capitals, and keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[Given] = []

    def __call__(self, call: int, parts: dict[int, Part]) -> list[str]:
        if "bad" in parts.values():
            raise ValueError(f"of call {call}")
        self.given.append((call, parts))
        return [part.upper() for part in parts.values()]


def handled(strict: bool, calls: list[tuple[int, int]]) -> tuple[list[Given], list[list[str]]]:
    """What two ranks' ``(call, rank)`` that come in this order are handled as, and the answers."""
    handler = Handler()

    async def run() -> list[list[str]]:
        rounds = Rounds(2, strict, handler)
        return await asyncio.gather(*(rounds.take(call, {rank: f"{call}:{rank}"}) for call, rank in calls))

    return handler.given, asyncio.run(run())


CALLS = [(2, 0), (1, 1), (3, 0), (2, 1), (1, 0), (3, 1)]


def test_strict_handles_whole_rounds_in_rank_order() -> None:
    given, answers = handled(True, CALLS)
    assert [call for call, _ in given] == [2, 1, 3]  # as they are whole; a rank that waits asks in order
    assert all(list(parts) == [0, 1] for _, parts in given)
    assert answers == [[f"{call}:{rank}".upper()] for call, rank in CALLS]


def test_ahead_handles_each_as_it_comes_and_waits_for_no_other() -> None:
    given, answers = handled(False, CALLS)
    assert given == [(call, {rank: f"{call}:{rank}"}) for call, rank in CALLS]
    assert answers == [[f"{call}:{rank}".upper()] for call, rank in CALLS]


def test_several_ranks_in_one_call_are_answered_in_their_order() -> None:
    async def run(strict: bool) -> list[list[str]]:
        rounds = Rounds(4, strict, Handler())
        return await asyncio.gather(rounds.take(1, {3: "d", 1: "b"}), rounds.take(1, {0: "a", 2: "c"}))

    for strict in (False, True):
        assert asyncio.run(run(strict)) == [["D", "B"], ["A", "C"]]


@pytest.mark.parametrize("strict", [False, True])
def test_an_error_goes_to_all_of_its_own_call(strict: bool) -> None:
    async def run() -> list[object]:
        rounds = Rounds(2, strict, Handler())
        taken = [rounds.take(2, {0: "good"}), rounds.take(1, {0: "bad"}), rounds.take(2, {1: "too"})]
        return await asyncio.gather(*taken, rounds.take(1, {1: "bad"}), return_exceptions=True)

    answers = asyncio.run(run())
    assert answers[0] == ["GOOD"] and answers[2] == ["TOO"]
    assert all(isinstance(answers[each], ValueError) and str(answers[each]) == "of call 1" for each in (1, 3))


def test_the_ranks_that_are_waited_for_are_named() -> None:
    async def run() -> list[dict[int, float]]:
        rounds, seen = Rounds(4, True, Handler()), []
        seen.append(rounds.missing())
        calls = [asyncio.create_task(rounds.take(1, {rank: "x"})) for rank in (0, 2)]
        await asyncio.sleep(0.02)
        seen.append(rounds.missing())
        await asyncio.gather(*calls, rounds.take(1, {1: "y", 3: "z"}))
        seen.append(rounds.missing())
        return seen

    before, during, after = asyncio.run(run())
    assert before == after == {}
    assert list(during) == [1, 3] and all(0.01 < seconds < 10 for seconds in during.values())

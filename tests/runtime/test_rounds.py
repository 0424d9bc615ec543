"""The order in which an actor applies calls that come in any order."""

from __future__ import annotations

import asyncio

import pytest

from rayssl.runtime.memory.rounds import Rounds


def applied(strict: bool, calls: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What two ranks' ``(call, rank)`` that come in this order are applied as, and the answers."""
    done: list[tuple[int, int]] = []

    async def run() -> list[tuple[int, int]]:
        rounds = Rounds(2, strict)

        async def one(each: tuple[int, int]) -> tuple[int, int]:
            return await rounds.take(*each, [lambda: done.append(each)], lambda _: each)  # type: ignore[no-any-return]

        return await asyncio.gather(*(one(each) for each in calls))

    return done, asyncio.run(run())


CALLS = [(2, 0), (1, 1), (3, 0), (2, 1), (1, 0), (3, 1)]


def test_strict_applies_whole_rounds_in_rank_order() -> None:
    done, answers = applied(True, CALLS)
    assert [call for call, _ in done] == [2, 2, 1, 1, 3, 3]  # as they are whole; a rank that waits asks in order
    assert [rank for _, rank in done] == [0, 1] * 3
    assert answers == CALLS


def test_ahead_applies_each_as_it_comes_and_waits_for_no_other() -> None:
    done, answers = applied(False, CALLS)
    assert done == CALLS == answers


def test_ahead_an_error_goes_to_its_own_call() -> None:
    async def run() -> list[object]:
        rounds = Rounds(1, strict=False)

        def fail() -> None:
            raise ValueError("of the first")

        second = rounds.take(2, 0, [lambda: "applied"], lambda applied: applied)
        return await asyncio.gather(second, rounds.take(1, 0, [fail], lambda _: None), return_exceptions=True)

    good, bad = asyncio.run(run())
    assert good == ["applied"]
    with pytest.raises(ValueError, match="of the first"):
        raise bad  # type: ignore[misc]


def test_strict_applies_step_by_step_in_the_order_of_ranks() -> None:
    async def run() -> list[tuple[int, str]]:
        rounds, done = Rounds(3, strict=True), list[tuple[int, str]]()

        async def call(rank: int, steps: str) -> list[object]:
            apply = [lambda step=step: done.append((rank, step)) for step in steps]  # type: ignore[misc]
            return await rounds.take(1, rank, apply, lambda applied: applied)  # type: ignore[no-any-return]

        assert await asyncio.gather(call(2, "ab"), call(0, "abc"), call(1, "")) == [[None] * 2, [None] * 3, []]
        return done

    assert asyncio.run(run()) == [(0, "a"), (2, "a"), (0, "b"), (2, "b"), (0, "c")]


def test_the_ranks_that_are_waited_for_are_named() -> None:
    async def run() -> list[dict[int, float]]:
        rounds, seen = Rounds(4, strict=True), []
        seen.append(rounds.missing())
        calls = [asyncio.create_task(rounds.take(1, rank, [], lambda _: None)) for rank in (0, 2)]
        await asyncio.sleep(0.02)
        seen.append(rounds.missing())
        await asyncio.gather(*calls, rounds.take(1, 1, [], lambda _: 1), rounds.take(1, 3, [], lambda _: 3))
        seen.append(rounds.missing())
        return seen

    before, during, after = asyncio.run(run())
    assert before == after == {}
    assert list(during) == [1, 3] and all(0.01 < seconds < 10 for seconds in during.values())

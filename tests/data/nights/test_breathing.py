"""Breaths and movements of a night, against the constants that their module states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayssl.data.nights import breathing, sleeper
from rayssl.data.nights.breathing import Breathing
from rayssl.data.nights.hypnogram import DEEP, LIGHT, REM, WAKE
from rayssl.data.nights.sleeper import Sleeper


def person(number: int, **changes: object) -> Sleeper:
    drawn = sleeper.draw(np.random.default_rng([1, number]), np.random.default_rng([2, number]))
    return replace(drawn, **changes)  # type: ignore[arg-type]


def night(who: Sleeper, stage: int, number: int, epochs: int = 60) -> tuple[Breathing, np.ndarray]:
    """Half an hour or so in one stage."""
    rng, stages = np.random.default_rng([3, number, stage]), np.full(epochs, stage)
    bouts = breathing.slow_process(rng, epochs, breathing.BOUT_EPOCHS)
    return breathing.breathe(rng, who, stages, bouts), bouts


def test_a_slow_process_is_stationary_with_its_time_constant() -> None:
    found = breathing.slow_process(np.random.default_rng(0), 100_000, 4.0)
    assert found.mean() == pytest.approx(0, abs=0.05)
    assert found.var() == pytest.approx(1, abs=0.04)
    for lag in (1, 4, 8):
        assert np.mean(found[lag:] * found[:-lag]) == pytest.approx(np.exp(-lag / 4), abs=0.04)
    first = [breathing.slow_process(np.random.default_rng(k), 2, 4.0)[0] for k in range(2000)]
    assert np.var(first) == pytest.approx(1, abs=0.1)  # from the first epoch on


@pytest.mark.parametrize(("stage", "expected"), [(WAKE, 0.25), (LIGHT, 0.08), (DEEP, 0.03), (REM, 0.20)])
def test_the_variation_of_the_period_over_minutes_is_the_stage_s(stage: int, expected: float) -> None:
    squares = []
    for number in range(150):
        breaths, _ = night(person(number, apneas=0.0, irregularity=1.0), stage, number)
        squares.append(np.var(np.log(breaths.period)))
    # Wake's and REM's tails are cut, so that no breath lasts below 1.6 s or above 12 s
    assert np.sqrt(np.mean(squares)) == pytest.approx(expected, rel=0.25)


def test_one_epoch_of_a_stage_may_look_like_another_stage() -> None:
    """The CV of one epoch overlaps between neighbours in regularity; over 20 epochs it hardly does."""
    one: list[np.ndarray] = []
    many: list[np.ndarray] = []
    for stage in (DEEP, LIGHT, REM):
        by_epoch, by_window = [], []
        for number in range(60):
            breaths, _ = night(person(number, apneas=0.0), stage, number, 20)
            epoch = (breaths.start / 30).astype(int)
            values = [np.std(np.log(breaths.period[epoch == e])) for e in range(20) if (epoch == e).sum() > 2]
            by_epoch += values
            by_window.append(np.mean(np.log(np.array(values) + 1e-3)))
        one.append(np.array(by_epoch))
        many.append(np.array(by_window))
    for calm, wild in ((0, 1), (1, 2)):
        assert 0.60 < separable(one[calm], one[wild]) < 0.85
        assert separable(many[calm], many[wild]) > separable(one[calm], one[wild]) + 0.08


def separable(low: np.ndarray, high: np.ndarray) -> float:
    """The balanced accuracy of the best threshold."""
    cuts = np.concatenate([low, high])
    return float(max(0.5 * ((low < cut).mean() + (high >= cut).mean()) for cut in cuts))


def test_an_epoch_holds_six_to_ten_breaths() -> None:
    counts = [len(night(person(k, apneas=0.0), LIGHT, k)[0].start) / 60 for k in range(60)]
    assert 5.5 < min(counts) < max(counts) < 11
    assert 7 < np.mean(counts) < 9


def test_deep_is_slower_and_deeper() -> None:
    ratios = []
    for number in range(40):
        light, deep = (night(person(number, apneas=0.0), stage, number)[0] for stage in (LIGHT, DEEP))
        ratios.append((deep.period.mean() / light.period.mean(), deep.depth.mean() / light.depth.mean()))
    period, depth = np.mean(ratios, axis=0)
    assert 1.05 < period < 1.15
    assert 1.15 < depth < 1.35


def test_breaths_follow_each_other_to_the_end() -> None:
    for number in range(20):
        breaths, _ = night(person(number, apneas=40.0), REM, number)
        gaps = np.diff(breaths.start) - breaths.period[:-1]
        pauses = gaps[gaps > 1e-6]
        assert gaps.min() > -1e-6
        assert ((pauses >= 10 - 1e-6) & (pauses <= 40 + 1e-6)).all()
        assert 0 <= breaths.start[0] < 45
        assert 1800 - 60 < breaths.start[-1] < 1800
        assert (np.array([breaths.period.min(), 12 - breaths.period.max()]) >= 0).all()


@pytest.mark.parametrize(("stage", "factor"), [(WAKE, 0.0), (LIGHT, 1.0), (DEEP, 0.3), (REM, 1.8)])
def test_apneas_an_hour(stage: int, factor: float) -> None:
    """Half of the events are pauses, half are shallow breaths; some events fall into a breath and are lost."""
    pauses = 0
    for number in range(120):
        breaths, _ = night(person(number, apneas=20.0), stage, number)
        pauses += int((np.diff(breaths.start) - breaths.period[:-1] > 1e-6).sum())
    assert pauses / 60 == pytest.approx(10 * factor, rel=0.2)


def test_snores_are_most_in_light_and_deep_and_hardly_awake() -> None:
    found = [
        np.mean([night(person(k, snorer=0.5), stage, k)[0].snored.mean() for k in range(60)]) for stage in range(4)
    ]
    assert found[LIGHT] == pytest.approx(0.5, abs=0.1)
    assert found[DEEP] == pytest.approx(found[LIGHT], abs=0.05)
    assert found[WAKE] < 0.05 < found[REM] < 0.55 * found[LIGHT]


@pytest.mark.parametrize(("stage", "a_minute"), [(WAKE, 2.0), (LIGHT, 0.3), (DEEP, 0.05), (REM, 0.1)])
def test_movements_a_minute(stage: int, a_minute: float) -> None:
    count = 0
    for number in range(300):
        rng, stages = np.random.default_rng([4, number]), np.full(60, stage)
        bouts = breathing.slow_process(rng, 60, breathing.BOUT_EPOCHS)
        moves = breathing.move(rng, person(number, restless=1.0), stages, bouts)
        count += len(moves.start)
        assert (np.diff(moves.start) >= 0).all()
        assert ((moves.length >= 1) & (moves.length <= 5)).all()
    assert count / (300 * 30) == pytest.approx(a_minute, rel=0.15)

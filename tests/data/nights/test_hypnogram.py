"""Generated hypnograms: shares, dwell times and order of the stages, and a scorer's mistakes."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from rayssl.data.nights import hypnogram
from rayssl.data.nights.hypnogram import DEEP, LIGHT, PROFILES, REM, WAKE
from rayssl.data.sources.nights import UNSCORED

NIGHTS = 200


@cache
def nights(profile: str) -> tuple[np.ndarray, ...]:
    rngs = (np.random.default_rng([7, k]) for k in range(NIGHTS))
    return tuple(hypnogram.whole_night(rng, 960, PROFILES[profile]) for rng in rngs)


def shares(found: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.mean([np.bincount(stages, minlength=4) / len(stages) for stages in found], axis=0)


def stays(stages: np.ndarray) -> list[tuple[int, float]]:
    """(stage, minutes) of every stay but the last, which the end of the night cuts."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(stages)) + 1])
    return [(int(stages[a]), (b - a) / 2) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("profile", "expected"), [("healthy", [0.12, 0.55, 0.15, 0.18]), ("long_tailed", [0.08, 0.82, 0.05, 0.05])]
)
def test_shares_are_as_stated(profile: str, expected: list[float]) -> None:
    assert np.abs(shares(nights(profile)) - expected).max() < 0.025


def test_a_third_of_long_tailed_nights_has_no_rem() -> None:
    none = [not (stages == REM).any() for stages in nights("long_tailed")]
    assert 0.25 < np.mean(none) < 0.42  # 102 of 287 in PSG-Audio: .36
    assert np.mean([not (stages == REM).any() for stages in nights("healthy")]) < 0.02


def test_dwell_times_are_those_of_sleep() -> None:
    lengths: dict[int, list[float]] = {stage: [] for stage in range(4)}
    for stages in nights("healthy"):
        for stage, minutes in stays(stages):
            lengths[stage].append(minutes)
    medians = [float(np.median(lengths[stage])) for stage in range(4)]
    assert 2 <= medians[WAKE] <= 6
    assert all(8 <= medians[stage] <= 20 for stage in (LIGHT, DEEP, REM))
    assert all(1 <= len(lengths[stage]) / NIGHTS <= 20 for stage in range(4))


def test_deep_comes_early_and_rem_late() -> None:
    halves = [shares(tuple(stages[part] for stages in nights("healthy"))) for part in (slice(480), slice(480, None))]
    assert halves[0][DEEP] > 2 * halves[1][DEEP]
    assert halves[1][REM] > 1.2 * halves[0][REM]


def test_a_night_begins_awake_and_only_light_leads_everywhere() -> None:
    seen = set()
    for stages in nights("healthy"):
        assert stages[0] == WAKE
        assert stages.dtype == np.int8
        seen |= {(int(a), int(b)) for a, b in itertools.pairwise(stages) if a != b}
    assert seen == {(WAKE, LIGHT), (LIGHT, WAKE), (LIGHT, DEEP), (LIGHT, REM), (DEEP, LIGHT), (DEEP, WAKE)} | {
        (REM, LIGHT),
        (REM, WAKE),
    }


def test_rem_comes_in_cycles_of_about_ninety_minutes() -> None:
    gaps = []
    for stages in nights("healthy"):
        rem = np.flatnonzero(stages == REM)
        begins = [rem[0], *rem[1:][np.diff(rem) > 60]] if len(rem) else []  # half an hour without REM ends a period
        gaps += list(np.diff(begins) / 2)
    assert 75 < np.median(gaps) < 115


def test_short_recordings_are_cut_out_at_any_place() -> None:
    cuts = tuple(hypnogram.draw(np.random.default_rng([8, k]), 240, PROFILES["healthy"]) for k in range(NIGHTS))
    assert {len(cut) for cut in cuts} == {240}
    assert np.abs(shares(cuts) - [0.10, 0.57, 0.15, 0.18]).max() < 0.04
    begins = np.bincount([cut[0] for cut in cuts], minlength=4)
    assert (begins > 0).all()


def test_nights_that_are_longer_than_a_night_are_whole() -> None:
    assert len(hypnogram.draw(np.random.default_rng(0), 1300, PROFILES["healthy"])) == 1300
    assert len(hypnogram.draw(np.random.default_rng(0), 1, PROFILES["healthy"])) == 1


def test_the_generator_alone_decides() -> None:
    one, same, other = (hypnogram.draw(np.random.default_rng(k), 500, PROFILES["healthy"]) for k in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_every_flip_moves_a_transition_by_one_epoch() -> None:
    stages = np.repeat([0, 1, 2, 1, 3], 50).astype(np.int8)
    written = hypnogram.scored(np.random.default_rng(0), stages, flips=1, unscored=0)
    before, after = (np.flatnonzero(np.diff(each)) + 1 for each in (stages, written))
    assert len(before) == len(after) == 4
    assert (np.abs(before - after) == 1).all()
    assert np.array_equal(written[after], stages[before])  # the same stages follow


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.5])
def test_the_share_of_flips(flips: float) -> None:
    moved = transitions = 0
    for k, stages in enumerate(nights("healthy")):
        kept = stages.copy()
        written = hypnogram.scored(np.random.default_rng(k), stages, flips=flips, unscored=0)
        assert np.array_equal(stages, kept)
        moved += int((written != stages).sum())
        transitions += int((np.diff(stages) != 0).sum())
    assert moved / transitions == pytest.approx(flips, abs=0.03)


@pytest.mark.parametrize("unscored", [0.02, 0.3, 0.9])
def test_the_share_of_unscored_epochs_and_their_runs(unscored: float) -> None:
    stages = np.ones(200_000, np.int8)
    hidden = hypnogram.scored(np.random.default_rng(1), stages, flips=0, unscored=unscored) == UNSCORED
    assert hidden.mean() == pytest.approx(unscored, abs=0.02)
    starts = hidden[1:] & ~hidden[:-1]
    assert hidden.sum() / max(1, starts.sum()) > 3

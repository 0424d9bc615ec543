"""Hypnograms from a seed: the stage of every epoch (30 s) of a night, by a semi-Markov chain with cycles of 90 minutes.

When a stage begins, its dwell time is drawn (log-normal, in minutes). Then a chain chooses the next stage::

    Wake  -> Light
    Deep  -> Light, rarely Wake
    REM   -> Light or Wake
    Light -> Wake with a fixed probability; otherwise Deep in the first part of a cycle and REM in the second,
             or Light again, with a probability that depends on the hour: Deep early in the night, REM late

A night begins with the time to fall asleep and lasts about 8 hours. A shorter recording is cut out of such a night, at
any place, so that short recordings have all stages in the same expected shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayssl.data.sources.nights import STAGES, UNSCORED

WAKE, LIGHT, DEEP, REM = range(len(STAGES))
EPOCHS_AN_HOUR = 120
_NIGHT_HOURS = (7.4, 8.6)
_CYCLE_MINUTES = (80.0, 105.0)
_REM_PHASE = 0.6  # the part of a cycle after which Light leads to REM, and before which it leads to Deep
_UNSCORED_RUN = 4.0  # epochs without a score come in runs of this mean length


@dataclass(frozen=True)
class SleepProfile:
    """How a population sleeps. Dwell times are medians in minutes.

    ``onset``: until sleep begins. ``light``, ``deep``, ``rem``: of one stay; ``wake``: of one awakening. ``spread``:
    the standard deviation of the logarithm of a dwell time. ``to_deep`` and ``to_rem``: the probability that Light
    leads there in the right part of a cycle, at the hour where it is highest. ``to_wake``: the probability that Light
    leads to Wake. ``without_rem``: the share of nights that have no REM.
    """

    onset: float
    wake: float
    light: float
    deep: float
    rem: float
    spread: float
    to_deep: float
    to_rem: float
    to_wake: float
    without_rem: float


#: Expected shares: healthy W .12 L .55 D .15 R .18; long_tailed W .08 L .82 D .05 R .05, as in a clinic's patients.
PROFILES: dict[str, SleepProfile] = {
    "healthy": SleepProfile(13.0, 3.8, 8.2, 13.5, 14.5, 0.6, 0.70, 0.85, 0.21, 0.0),
    "long_tailed": SleepProfile(12.0, 2.6, 13.0, 6.5, 10.0, 0.6, 0.42, 0.52, 0.20, 0.33),
}


def draw(rng: np.random.Generator, epochs: int, profile: SleepProfile) -> np.ndarray:
    """The stages of one recording of ``epochs`` epochs: int8 ``[epochs]``, indices into `STAGES`."""
    night = round(float(rng.uniform(*_NIGHT_HOURS)) * EPOCHS_AN_HOUR)
    stages = whole_night(rng, max(night, epochs), profile)
    first = int(rng.integers(0, len(stages) - epochs + 1))
    return stages[first : first + epochs]


def whole_night(rng: np.random.Generator, epochs: int, profile: SleepProfile) -> np.ndarray:
    """The stages of a night from going to bed until getting up: int8 ``[epochs]``."""
    stages = np.full(epochs, WAKE, np.int8)
    has_rem = rng.random() >= profile.without_rem
    at = onset = _dwell(rng, profile.onset, profile.spread)
    cycle = rng.uniform(*_CYCLE_MINUTES) * 2
    stage = LIGHT
    while at < epochs:
        minutes = (profile.wake, profile.light, profile.deep, profile.rem)[stage]
        if stage in (DEEP, REM):  # early stays in Deep are longer than late ones; in REM it is the other way round
            late = at / epochs
            minutes *= (1.3 - 0.8 * late) if stage == DEEP else (0.6 + 0.8 * late)
        last = at + _dwell(rng, minutes, 0.9 if stage == WAKE else profile.spread)
        stages[at:last] = stage
        at = last
        stage = _next(rng, stage, ((at - onset) % cycle) / cycle, at / epochs, profile, has_rem)
    return stages


def _next(rng: np.random.Generator, stage: int, phase: float, late: float, profile: SleepProfile, has_rem: bool) -> int:
    """The stage after ``stage``, at the place ``phase`` (0..1) of a cycle and ``late`` (0..1) of the night."""
    chance = rng.random()
    if stage == LIGHT:
        if chance < profile.to_wake:
            return WAKE
        chance = (chance - profile.to_wake) / (1 - profile.to_wake)
        if phase < _REM_PHASE:
            return DEEP if chance < profile.to_deep * max(0.0, 1.15 - 1.3 * late) else LIGHT
        return REM if has_rem and chance < profile.to_rem * min(1.0, 0.6 + 0.6 * late) else LIGHT
    leads_to_wake = {WAKE: 0.0, DEEP: 0.06, REM: 0.3}[stage]
    return WAKE if chance < leads_to_wake else LIGHT


def _dwell(rng: np.random.Generator, minutes: float, spread: float) -> int:
    """A dwell time in epochs, at least 1, whose median is ``minutes``."""
    return max(1, round(2 * minutes * float(np.exp(spread * rng.standard_normal()))))


def scored(rng: np.random.Generator, stages: np.ndarray, *, flips: float, unscored: float) -> np.ndarray:
    """What a scorer writes: int8 ``[epochs]``, ``stages [epochs]`` with mistakes.

    A share ``flips`` (0..1) of the transitions is written one epoch too early or too late. A share ``unscored`` (0 to
    below 1) of the epochs is `UNSCORED`, in runs.
    """
    written = stages.copy()
    changes = np.flatnonzero(np.diff(stages)) + 1
    for change in changes[rng.random(len(changes)) < flips]:
        if rng.random() < 0.5:
            written[change - 1] = stages[change]
        else:
            written[change] = stages[change - 1]
    if unscored:
        run = max(_UNSCORED_RUN, 2 * unscored / (1 - unscored))  # longer if hardly an epoch is scored
        begins = unscored / (run * (1 - unscored))
        hidden, inside = np.zeros(len(stages), bool), rng.random() < unscored
        for epoch, chance in enumerate(rng.random(len(stages)).tolist()):
            hidden[epoch] = inside
            inside = chance >= 1 / run if inside else chance < begins
        written[hidden] = UNSCORED
    return written

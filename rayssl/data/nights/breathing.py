"""Every breath, snore and movement of a night, given its stages.

The period of a breath and its depth vary, and how much they vary tells the stage. The coefficient of variation (CV) of
the period over minutes is, as an RMS over many subjects, about::

    Wake .25    Light .08    Deep .03    REM .20

But irregular breathing comes in bouts of about a minute: the CV at one moment is log-normal around the stage's::

    cv(t) = CV[stage] * irregularity * exp(B z(t) - B^2),     z: a normal AR(1) process, B = 1

so that its RMS over minutes is CV[stage], and one epoch (6 to 10 breaths) may be calm in REM or irregular in Light. A
slow part, drawn for each epoch, moves the mean period from minute to minute: one epoch does not show it. Apneas and
movements add irregular periods that do not belong to a stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayssl.data.nights.hypnogram import EPOCHS_AN_HOUR
from rayssl.data.nights.sleeper import Sleeper
from rayssl.data.sources.nights import EPOCH_S

PERIOD_CV = np.array([0.25, 0.08, 0.03, 0.20])
DEPTH_CV = np.array([0.30, 0.14, 0.06, 0.30])
BOUT_SPREAD = 1.0  # B above
BOUT_EPOCHS = 2.0  # time constant of z
_SLOW_EPOCHS, _SNORE_EPOCHS = 5.0, 6.0
_FAST, _SLOW = 0.7, 0.7  # shares of the CV; their squares sum to about 1
_MOVEMENTS = np.array([2.0, 0.3, 0.05, 0.1]) / 2  # an epoch
_SNORES = np.array([0.05, 1.0, 1.0, 0.4])  # factors on `Sleeper.snorer`
_APNEAS = np.array([0.0, 1.0, 0.3, 1.8])  # factors on `Sleeper.apneas`


@dataclass(frozen=True)
class Breathing:
    """The breaths of a night. All are ``[N]``, in order.

    ``start``: seconds after the beginning of the night. ``period``: seconds until the next breath would begin, without
    the pause of an apnea. ``depth``: loudness, 1 on average. ``snored``: whether the breath is a snore.
    """

    start: np.ndarray
    period: np.ndarray
    depth: np.ndarray
    snored: np.ndarray


@dataclass(frozen=True)
class Movements:
    """M movements or utterances in order: ``start [M]``, ``length [M]`` in seconds; ``size [M]``: loudness, about 1."""

    start: np.ndarray
    length: np.ndarray
    size: np.ndarray


def slow_process(rng: np.random.Generator, epochs: int, constant: float) -> np.ndarray:
    """A stationary normal AR(1) process with variance 1 and a time constant in epochs: float64 ``[epochs]``."""
    keeps = float(np.exp(-1 / constant))
    noise = rng.standard_normal(epochs) * np.sqrt(1 - keeps**2)
    values, last = np.empty(epochs), float(rng.standard_normal())
    for epoch, step in enumerate(noise.tolist()):
        last = keeps * last + step
        values[epoch] = last
    return values


def breathe(rng: np.random.Generator, sleeper: Sleeper, stages: np.ndarray, bouts: np.ndarray) -> Breathing:
    """The breaths of a night with ``stages [E]``; ``bouts [E]`` is the process z above."""
    epochs = len(stages)
    local = sleeper.irregularity * np.exp(BOUT_SPREAD * bouts - BOUT_SPREAD**2)
    period_cv = np.minimum(0.5, PERIOD_CV[stages] * local)
    depth_cv = np.minimum(0.7, DEPTH_CV[stages] * local)
    slow = slow_process(rng, epochs, _SLOW_EPOCHS) * PERIOD_CV[stages] * sleeper.irregularity
    base = 60 / sleeper.rate * sleeper.pace[stages] * np.exp(_SLOW * slow)
    depth = sleeper.depth[stages] * np.exp(0.12 * slow_process(rng, epochs, _SLOW_EPOCHS))
    events = rng.random(epochs) < sleeper.apneas * _APNEAS[stages] / EPOCHS_AN_HOUR
    snoring = slow_process(rng, epochs, _SNORE_EPOCHS)
    snore = np.clip(_SNORES[stages] * sleeper.snorer * np.exp(snoring - 0.5), 0, 0.95)
    per_epoch = np.stack([base, _FAST * period_cv, depth, depth_cv, snore, events], axis=1).tolist()
    return _breaths(rng, per_epoch)


def _breaths(rng: np.random.Generator, per_epoch: list[list[float]]) -> Breathing:
    """Breath after breath; ``per_epoch``: mean period, its CV, mean depth, its CV, chance of a snore, an event or not.

    An event is an apnea (a pause of 10 to 40 s, then a gasp) or a hypopnea (shallow breaths for as long, then a gasp).
    """
    time, event_at, shallow_until, end = float(rng.uniform(0, 3)), -1, -1.0, len(per_epoch) * EPOCH_S
    found: list[tuple[float, float, float, bool]] = []
    draws: list[list[float]] = []
    while time < end:
        epoch = int(time / EPOCH_S)
        if not draws:
            draws = np.column_stack([rng.standard_normal((512, 2)), rng.random((512, 3))]).tolist()
        by_period, by_depth, chance, place, kind = draws.pop()
        base, period_cv, depth_mean, depth_cv, snore, event = per_epoch[epoch]
        period = min(12.0, max(1.6, base * float(np.exp(period_cv * by_period))))
        depth = depth_mean * float(np.exp(depth_cv * by_depth))
        if shallow_until > 0:
            if time < shallow_until:
                depth *= 0.25
            else:
                depth, shallow_until = 1.8 * depth, -1.0
        elif event and event_at != epoch and time / EPOCH_S - epoch > 0.6 * place:
            event_at, length = epoch, 10 + 30 * chance**1.5
            if kind < 0.5:
                time += length
                depth *= 1.8
            else:
                shallow_until = time + length
        found.append((time, period, depth, chance < snore))
        time += period
    start, periods, depths, snored = (np.array(column) for column in zip(*found, strict=True))
    inside = start < end
    return Breathing(start[inside], periods[inside], depths[inside], snored[inside])


def move(rng: np.random.Generator, sleeper: Sleeper, stages: np.ndarray, bouts: np.ndarray) -> Movements:
    """The movements of a night: more in bouts of irregular breathing, and often where the stage changes."""
    rate = _MOVEMENTS[stages] * sleeper.restless * np.exp(1.2 * bouts - 0.72)
    rate[1:] += 0.3 * (stages[1:] != stages[:-1])
    counts = rng.poisson(np.minimum(rate, 5))
    epoch = np.repeat(np.arange(len(stages)), counts)
    start = np.sort(EPOCH_S * (epoch + rng.random(len(epoch))))
    return Movements(start, rng.uniform(1, 5, len(start)), np.exp(0.5 * rng.standard_normal(len(start))))


def talking(rng: np.random.Generator, stages: np.ndarray, bouts: np.ndarray) -> Movements:
    """Utterances: some in active bouts of Wake, hardly any in sleep."""
    rate = np.array([0.35, 0.003, 0.0, 0.006])[stages] * np.exp(1.2 * bouts - 0.72)
    counts = rng.poisson(np.minimum(rate, 4))
    epoch = np.repeat(np.arange(len(stages)), counts)
    start = np.sort(EPOCH_S * (epoch + rng.random(len(epoch))))
    return Movements(start, rng.uniform(0.7, 4, len(start)), np.exp(0.4 * rng.standard_normal(len(start))))

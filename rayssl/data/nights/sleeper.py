"""The constants of a subject and of one night of the subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sleeper:
    """A subject. Values for the stages are ``[4]``: Wake, Light, Deep, REM.

    ``rate``: breaths a minute. ``irregularity``: a factor on the coefficients of variation of all stages. ``pace``:
    factors on the period, and ``depth`` on the loudness of a breath. ``restless``: a factor on the number of movements.
    ``tract``: centre of the breath noise in Hz, and its width in octaves. ``exhale``: loudness of breathing out over
    breathing in. ``snorer``: probability of a snore in a breath of Light. ``pitch``: of the snore in Hz. ``snore_db``:
    its level over the breath's. ``apneas``: apneas and hypopneas an hour (AHI). ``level_db``: RMS of a breath in dB of
    full scale, at the microphone.
    """

    rate: float
    irregularity: float
    pace: np.ndarray
    depth: np.ndarray
    restless: float
    tract: tuple[float, float]
    exhale: float
    snorer: float
    pitch: float
    snore_db: float
    apneas: float
    level_db: float


_PACE = np.array([0.96, 1.0, 1.10, 0.97])
_DEPTH = np.array([1.0, 1.0, 1.25, 0.85])


def draw(subject: np.random.Generator, night: np.random.Generator) -> Sleeper:
    """A subject, from a generator of the subject's own; ``night`` draws what differs between nights of a subject.

    That is snoring, a part of the AHI and the distance to the microphone, and a little of the rate.
    """
    rate, centre = subject.uniform(12, 20), 700 * 2 ** subject.uniform(-0.6, 0.6)
    snores = subject.random() < 0.6
    apneas = 7 * float(np.exp(0.9 * subject.standard_normal() + 0.3 * night.standard_normal()))
    return Sleeper(
        rate=rate * float(np.exp(0.04 * night.standard_normal())),
        irregularity=subject.uniform(0.7, 1.3),
        pace=_PACE * np.exp(0.02 * subject.standard_normal(4)),
        depth=_DEPTH * np.exp(0.08 * subject.standard_normal(4)),
        restless=float(np.exp(0.3 * subject.standard_normal())),
        tract=(centre, subject.uniform(0.9, 1.6)),
        exhale=subject.uniform(0.3, 1.1),
        snorer=night.uniform(0.05, 0.8) if snores else 0.0,
        pitch=subject.uniform(60, 130),
        snore_db=subject.uniform(4, 18),
        apneas=min(60.0, apneas),
        level_db=subject.uniform(-42, -32) + night.uniform(-4, 4),
    )

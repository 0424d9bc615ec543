"""What is heard in a room beside the sleeper: the noise floor, single noises, television or music, and the microphone.

``hospital``: a quiet room with a good microphone; SNR 5 to 25 dB. ``home``: a phone on a table; SNR -10 to 10 dB, a
high pass, traffic, often television or music for a part of the night, and often a partner who sleeps in the same room.
The SNR is the power of a breath at its loudest over the power of the stationary noise between 200 and 2000 Hz, both
behind the microphone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy import fft

from rayssl.data.decode import RATE
from rayssl.data.nights import sound
from rayssl.data.nights.sound import SoundPieces

Domain: TypeAlias = Literal["hospital", "home"]
FLOOR = 1 << 19  # samples of the stationary noise, which is periodic: 32.8 s
_CHUNK_S = 4.0  # television is a chain of such pieces


@dataclass(frozen=True)
class Room:
    """One room in one night.

    ``snr_db``: as above. ``microphone [1025]``: its response at `sound.hertz`. ``slope``: of the noise, in dB an
    octave. ``hum_hz`` and ``hum_db``: mains, over the noise between 200 and 2000 Hz, as is ``tick_db``: of a clock that
    ticks; None without one. ``traffic`` and ``bumps``: cars, and steps or doors, an hour. ``programmes``: (begin, end)
    in seconds of television or music. ``programme_db``: its level over a breath. ``partner_db``: level of a second
    sleeper's breath over the first's; None without one.
    """

    snr_db: float
    microphone: np.ndarray
    slope: float
    hum_hz: float
    hum_db: float
    tick_db: float | None
    traffic: float
    bumps: float
    programmes: tuple[tuple[float, float], ...]
    programme_db: float
    partner_db: float | None


def draw(rng: np.random.Generator, domain: Domain, seconds: float) -> Room:
    """A room for a night of ``seconds`` seconds."""
    home = domain == "home"
    low, high = (rng.uniform(70, 250), rng.uniform(3500, 7500)) if home else (rng.uniform(20, 40), 8000.0)
    programmes: tuple[tuple[float, float], ...] = ()
    if home and rng.random() < 0.4:
        begin = 0.0 if rng.random() < 0.6 else float(rng.uniform(0, seconds))
        programmes = ((begin, begin + min(seconds, float(rng.uniform(600, 5400)))),)
    return Room(
        snr_db=float(rng.uniform(-10, 10) if home else rng.uniform(5, 25)),
        microphone=sound.band(low, high),
        slope=float(rng.uniform(-4.5, -1.5)),
        hum_hz=50.0 if rng.random() < 0.5 else 60.0,
        hum_db=float(rng.uniform(-30, -5)),
        tick_db=float(rng.uniform(-5, 10)) if rng.random() < 0.25 else None,
        traffic=float(rng.uniform(0, 25) if home else rng.uniform(0, 4)),
        bumps=float(rng.uniform(2, 20)),
        programmes=programmes,
        programme_db=float(rng.uniform(-8, 8)),
        partner_db=float(rng.uniform(-18, -5)) if home and rng.random() < 0.4 else None,
    )


def floor(rng: np.random.Generator, room: Room) -> np.ndarray:
    """The stationary noise behind the microphone, with hum and clock: float32 ``[FLOOR]``.

    The noise has an RMS of 1 between 200 and 2000 Hz.
    """
    at = np.maximum(sound.hertz(), 30)
    shape = (at / 1000) ** (room.slope / 6.02) + 0.02
    response = (shape * room.microphone).astype(np.float32)
    samples = sound.carrier(sound.white(int(rng.integers(3)), FLOOR), response)[:FLOOR]
    middle = (at >= 200) & (at <= 2000)
    samples *= np.sqrt(np.sum(response**2) / np.sum(response[middle] ** 2))
    spectrum = np.zeros(FLOOR // 2 + 1, np.complex64)
    for harmonic in range(1, 6):
        place = round(room.hum_hz * harmonic * FLOOR / RATE)
        spectrum[place] = np.exp(2j * np.pi * rng.random()) / harmonic
    spectrum *= FLOOR / np.sqrt(2 * np.sum(np.abs(spectrum) ** 2)) * 10 ** (room.hum_db / 20)
    samples += fft.irfft(spectrum, FLOOR).astype(np.float32)
    if room.tick_db is not None:
        time = np.arange(800, dtype=np.float32)
        tick = np.exp(-time / 120) * np.sin(time * rng.uniform(0.6, 1.6)) * 4 * 10 ** (room.tick_db / 20)
        for second in np.linspace(0, FLOOR, 33, endpoint=False).astype(int):
            samples[second : second + 800] += tick
    return samples


def drift(rng: np.random.Generator, epochs: int) -> np.ndarray:
    """The gain of the stationary noise in each epoch, float32 ``[epochs]``: it drifts, and a fan may switch by 3 dB."""
    knots = np.arange(0, epochs + 20, 20)
    walk = np.interp(np.arange(epochs), knots, rng.standard_normal(len(knots)))
    fan = np.floor((np.arange(epochs) + rng.uniform(0, 60)) / 30) % 2 * 3.0 * (rng.random() < 0.3)
    return np.asarray(10 ** ((walk + fan) / 20), np.float32)


def noises(
    rng: np.random.Generator, room: Room, seconds: float, level: float, *, street: int, bump: int
) -> SoundPieces:
    """Traffic and bumps of a night of ``seconds`` seconds; ``level``: RMS of the stationary noise.

    ``street`` and ``bump`` are the numbers of the carriers.
    """
    cars, bumps = (int(rng.poisson(hourly * seconds / 3600)) for hourly in (room.traffic, room.bumps))
    loud = level * 10 ** (rng.uniform(-5, 12, cars) / 20)
    passing = sound.pieces(rng, street, sound.SWELL, rng.uniform(0, seconds, cars), rng.uniform(4, 8, cars), loud)
    loud = level * 10 ** (rng.uniform(0, 18, bumps) / 20)
    steps = sound.pieces(rng, bump, sound.BURST, rng.uniform(0, seconds, bumps), rng.uniform(0.5, 4, bumps), loud)
    return sound.merged([passing, steps])


def programme(
    rng: np.random.Generator, times: tuple[tuple[float, float], ...], level: float, *, number: int
) -> list[SoundPieces]:
    """Television or music of RMS ``level`` from carrier ``number``, without a gap, at the ``times`` (begin, end)."""
    found = []
    for begin, end in times:
        start = np.arange(begin, end, _CHUNK_S)
        one = sound.pieces(rng, number, sound.FLAT, start, np.full(len(start), _CHUNK_S), np.full(len(start), level))
        follows = (one.offset[0] + np.arange(len(start)) * round(_CHUNK_S * RATE)) % sound.CARRIER
        found.append(replace(one, offset=follows))
    return found

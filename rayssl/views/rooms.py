"""Room impulse responses, generated from a seed or made from recordings. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rooms = NDArray[np.float32]

_REFLECTIONS = 8
_FIRST_MS, _LAST_MS = 1.0, 40.0


def generate(rooms: int, samples: int, rate: int, rt60_s: tuple[float, float], seed: int) -> Rooms:
    """Room responses ``[rooms, samples]`` of unit energy. The first sample is the direct path.

    A few early reflections and a tail of Gaussian noise follow. The tail falls by 60 dB in RT60 seconds, drawn
    log-uniformly from ``rt60_s``. The ratio of direct to reverberant energy is drawn from -3 to 10 dB.
    """
    random = np.random.default_rng([seed, 7001])
    time = np.arange(samples) / rate
    rt60 = np.exp(random.uniform(np.log(rt60_s[0]), np.log(rt60_s[1]), (rooms, 1)))
    envelope = 10.0 ** (-3.0 * time / rt60)
    tail = random.standard_normal((rooms, samples)) * envelope
    tail[:, : round(_FIRST_MS * rate / 1000)] = 0.0
    tail /= np.sqrt(np.sum(tail**2, axis=1, keepdims=True) + 1e-20)
    early = np.zeros((rooms, samples))
    delays = random.uniform(_FIRST_MS, _LAST_MS, (rooms, _REFLECTIONS)) * rate / 1000
    positions = np.minimum(delays.astype(np.int64), samples - 1)
    signs = random.choice([-1.0, 1.0], (rooms, _REFLECTIONS))
    rows = np.arange(rooms)[:, None]
    np.add.at(early, (rows, positions), signs * envelope[rows, positions])
    early /= np.sqrt(np.sum(early**2, axis=1, keepdims=True) + 1e-20)
    direct_to_reverberant = random.uniform(-3.0, 10.0, (rooms, 1))
    response = (tail + early) / np.sqrt(2.0) * 10.0 ** (-direct_to_reverberant / 20.0)
    response[:, 0] = 1.0
    return _unit_energy(response)


def from_recordings(recordings: list[NDArray[np.int16]], samples: int) -> Rooms:
    """Recorded responses as ``[n, samples]`` of unit energy. Silent recordings are left out.

    Each response begins with its strongest sample, which is taken as the direct path. Raises `ValueError` if all
    recordings are silent.
    """
    sounding = [pcm for pcm in recordings if np.any(pcm)]
    if not sounding:
        raise ValueError("no recording holds any sound")
    aligned = np.zeros((len(sounding), samples))
    for row, pcm in zip(aligned, sounding, strict=True):
        values = pcm.astype(np.float64)
        direct = int(np.argmax(np.abs(values)))
        part = values[direct : direct + samples] * np.sign(values[direct])
        row[: len(part)] = part
    return _unit_energy(aligned)


def _unit_energy(responses: NDArray[np.float64]) -> Rooms:
    unit: Rooms = (responses / np.sqrt(np.sum(responses**2, axis=1, keepdims=True))).astype(np.float32)
    return unit

"""Noise clips, generated from a seed or made from recordings. NumPy only; `mixing` keeps them on the device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Clips = NDArray[np.float32]

_COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # the exponent e of a power spectrum 1/f**e
_LOWEST_HZ = 20.0
_TALKERS, _VOICES = 12, 6


def generate(kind: str, clips: int, samples: int, rate: int, seed: int) -> Clips:
    """Noise ``[clips, samples]`` of unit power at ``rate`` Hz. ``kind``: "white", "pink", "brown" or "babble"."""
    random = np.random.default_rng([seed, sorted((*_COLOURS, "babble")).index(kind)])
    made = _babble(random, clips, samples, rate) if kind == "babble" else _coloured(random, kind, clips, samples, rate)
    made -= made.mean(axis=1, keepdims=True)
    return _unit_power(made)


def from_recordings(recordings: list[NDArray[np.int16]], samples: int) -> Clips:
    """Recordings as clips ``[n, samples]`` of unit power, cut or repeated end to start. Silent recordings are left out.

    Raises `ValueError` if all recordings are silent.
    """
    sounding = [pcm for pcm in recordings if np.any(pcm)]
    if not sounding:
        raise ValueError("no recording holds any sound")
    stacked = np.stack([np.resize(pcm, samples) for pcm in sounding]).astype(np.float32)
    return _unit_power(stacked)


def _unit_power(clips: NDArray[np.floating]) -> Clips:
    power = np.mean(np.square(clips, dtype=np.float64), axis=1, keepdims=True)
    unit: Clips = (clips / np.sqrt(np.where(power > 0.0, power, 1.0))).astype(np.float32)
    return unit


def _coloured(random: np.random.Generator, kind: str, clips: int, samples: int, rate: int) -> Clips:
    """Gaussian noise with a power spectrum 1/f**e above 20 Hz, and a flat one below; see `_COLOURS` for e."""
    length = fast_length(samples)
    spectrum = np.fft.rfft(random.standard_normal((clips, length), dtype=np.float32), axis=1)
    frequency = np.maximum(np.fft.rfftfreq(length, 1.0 / rate), _LOWEST_HZ)
    shaped = np.fft.irfft(spectrum * frequency ** (-_COLOURS[kind] / 2.0), length, axis=1)
    return np.asarray(shaped[:, :samples], dtype=np.float32)


def _babble(random: np.random.Generator, clips: int, samples: int, rate: int) -> Clips:
    """Sums of several synthetic talkers. Each clip has its own choice of talkers and its own shifts in time."""
    talkers = np.stack([_talker(random, samples, rate) for _ in range(_TALKERS)])
    babble = np.zeros((clips, samples), dtype=np.float32)
    for clip in babble:
        for voice in random.choice(_TALKERS, _VOICES, replace=False):
            clip += np.roll(talkers[voice], int(random.integers(samples))) * random.uniform(0.5, 1.0)
    return babble


def _talker(random: np.random.Generator, samples: int, rate: int) -> Clips:
    """Speech-like sound ``[samples]`` of unit power: varying pitch and breath, filtered by vowels, in syllables."""
    length = fast_length(samples)
    seconds = length / rate
    knots = max(4, int(4 * seconds))
    grid = np.linspace(0, knots - 1, length)
    pitch = random.uniform(90.0, 240.0) * np.interp(grid, np.arange(knots), random.uniform(0.85, 1.2, knots))
    sawtooth = 2.0 * np.mod(np.cumsum(pitch) / rate, 1.0) - 1.0
    source = np.fft.rfft(sawtooth + 0.2 * random.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1.0 / rate)
    spoken = np.zeros(length)
    # Vowels overlap at random; each gets louder and softer about four times a second
    for _ in range(3):
        formants = random.uniform([250.0, 800.0, 2000.0], [850.0, 2200.0, 3200.0])
        response = sum(1.0 / (1.0 + ((frequency - formant) / 90.0) ** 2) for formant in formants)
        level = np.interp(grid, np.arange(knots), np.maximum(random.uniform(-0.6, 1.0, knots), 0.0))
        spoken += level * np.fft.irfft(source * response, length)
    spoken = spoken[:samples]
    return np.asarray(spoken / np.sqrt(np.mean(spoken**2) + 1e-20), dtype=np.float32)


def fast_length(samples: int) -> int:
    """The smallest number >= ``samples`` without a prime factor above 5: the FFT of other lengths is slow."""
    best = 1 << max(samples - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three
            while two < samples:
                two *= 2
            best = min(best, two)
            three *= 3
        five *= 5
    return best

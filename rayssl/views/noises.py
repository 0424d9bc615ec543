"""Noise clips, generated from a seed or made from recordings. NumPy only; `mixing` keeps them on the device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Clips = NDArray[np.float32]

_COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # the exponent e of a power spectrum 1/f**e
_LOWEST_HZ = 20.0
_TALKERS, _VOICES = 12, 6
_PRESENTERS = 4
_SCALE = (0, 2, 4, 7, 9)  # pentatonic, in semitones
_SEEDS = {"babble": 0, "brown": 1, "pink": 2, "white": 3, "hum": 4, "music": 5, "tv": 6}


def generate(kind: str, clips: int, samples: int, rate: int, seed: int) -> Clips:
    """Noise ``[clips, samples]`` of unit power at ``rate`` Hz.

    ``kind``: "white", "pink", "brown", "babble", or of a home also "hum", "music", "tv".
    """
    random = np.random.default_rng([seed, _SEEDS[kind]])
    if kind in _COLOURS:
        made = _coloured(random, kind, clips, samples, rate)
    else:
        made = {"babble": _babble, "hum": _hum, "music": _music, "tv": _tv}[kind](random, clips, samples, rate)
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


def _hum(random: np.random.Generator, clips: int, samples: int, rate: int) -> Clips:
    """Mains hum of 50 or 60 Hz with falling harmonics, and the pink noise of a fan, 10 to 30 dB below."""
    hum = _coloured(random, "pink", clips, samples, rate)
    hum *= 10.0 ** (-random.uniform(10.0, 30.0, (clips, 1)) / 20.0) / np.sqrt(np.mean(np.square(hum)))
    second = np.arange(rate) / rate
    for clip in hum:
        harmonics = random.choice([50, 60]) * np.arange(1, 25)
        harmonics = harmonics[harmonics < rate / 2]
        levels = random.uniform(0.1, 1.0, len(harmonics)) / np.arange(1, len(harmonics) + 1)
        levels /= np.sqrt(0.5 * np.sum(levels**2))
        phases = 2 * np.pi * (np.outer(harmonics, second) + random.uniform(size=(len(harmonics), 1)))
        clip += np.resize(levels @ np.sin(phases), samples)  # every harmonic has whole periods in one second
    return hum


def _music(random: np.random.Generator, clips: int, samples: int, rate: int) -> Clips:
    """Plucked notes of a pentatonic scale, one or two on each beat, with beats of .2 to .7 s."""
    music = np.zeros((clips, samples))
    for clip in music:
        beat, decay_s = random.uniform(0.2, 0.7), random.uniform(0.2, 1.0)
        root = random.uniform(110.0, 330.0)
        time = np.arange(min(samples, round(2.0 * beat * rate))) / rate
        envelope = np.exp(-time / decay_s) * np.minimum(1.0, (2.0 * beat - time) / (0.1 * beat))
        for start in np.arange(0, samples, beat * rate).astype(np.int64):
            for _ in range(int(random.integers(1, 3))):
                semitones = random.choice(_SCALE) + 12 * int(random.integers(3))
                pitch = root * 2.0 ** (semitones / 12.0)
                note = (2.0 * np.mod(pitch * time, 1.0) - 1.0) * envelope * random.uniform(0.3, 1.0)
                clip[start : start + len(time)] += note[: samples - start]
    return _softened(music, rate)


def _softened(clips: NDArray[np.float64], rate: int) -> Clips:
    """``clips`` with 6 dB less per octave above 500 Hz, as one hears music in the next room."""
    samples = clips.shape[1]
    length = fast_length(samples)
    frequency = np.fft.rfftfreq(length, 1.0 / rate)
    response = 1.0 / np.maximum(frequency / 500.0, 1.0)
    made = [np.fft.irfft(np.fft.rfft(clip, length) * response, length)[:samples] for clip in clips]
    return np.stack(made).astype(np.float32)


def _tv(random: np.random.Generator, clips: int, samples: int, rate: int) -> Clips:
    """One talker at a time, in turns of 2 to 8 s, over music that is 5 to 20 dB weaker."""
    talkers = np.stack([_talker(random, samples, rate) for _ in range(_PRESENTERS)])
    tv = _unit_power(_music(random, clips, samples, rate))
    tv *= 10.0 ** (-random.uniform(5.0, 20.0, (clips, 1)) / 20.0)
    for clip in tv:
        start = 0
        while start < samples:
            stop = start + round(random.uniform(2.0, 8.0) * rate)
            voice = np.roll(talkers[random.integers(_PRESENTERS)], int(random.integers(samples)))
            clip[start:stop] += voice[start:stop]
            start = stop
    return tv


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

"""The sound of a night: short pieces of carriers, shaped by envelopes, on a background.

A *carrier* is a long sound of RMS 1, made once a night: noise that was filtered by a vocal tract and a microphone, a
train of snore pulses, speech, music. A *piece* is a part of a carrier times an envelope and a gain::

    out[start + t] += gain * envelope(t / size) * carrier[offset + t]          0 <= t < size

Breaths, snores, rustle and noises of the street are all pieces, so an epoch costs a few slices of NumPy for each of
them, and no filter runs per epoch. All carriers are filtered by spectra of noise that a process makes once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

from rayssl.data import speech
from rayssl.data.decode import RATE

CARRIER = 1 << 18  # samples of a carrier: 16.4 s
LONGEST = 8 * RATE  # samples of the longest piece
_POINTS = 1024  # a response is known at so many frequencies, and linear between them
_STEP = 1.06  # the sizes of pieces form a geometric series with this ratio, so that envelopes can be kept
_SMALLEST = 800
BREATH_IN, BREATH_OUT, BURST, SWELL, FLAT = range(5)


@dataclass(frozen=True)
class SoundPieces:
    """P pieces of sound, in order of ``start`` (samples after the beginning of the night, int64 ``[P]``).

    ``size`` in samples, ``carrier`` and ``offset``: which part of which carrier, ``shape``: the envelope, all int64
    ``[P]``. ``gain`` float32 ``[P]``: the RMS at the top of the envelope.
    """

    start: np.ndarray
    size: np.ndarray
    carrier: np.ndarray
    offset: np.ndarray
    shape: np.ndarray
    gain: np.ndarray

    def overlapping(self, first: int, last: int) -> list[tuple[int, int, int, int, int, float]]:
        """The pieces of which a part lies in the samples ``first`` to ``last``, as tuples."""
        low, high = np.searchsorted(self.start, (first - LONGEST, last))
        fields = (self.start, self.size, self.carrier, self.offset, self.shape, self.gain)
        rows = zip(*(field[low:high].tolist() for field in fields), strict=True)
        return [row for row in rows if row[0] + row[1] > first]


def pieces(
    rng: np.random.Generator, carrier: int, shape: int, seconds: np.ndarray, lengths: np.ndarray, gain: np.ndarray
) -> SoundPieces:
    """SoundPieces of one ``carrier`` that begin at ``seconds [P]`` and last ``lengths [P]`` seconds, with ``gain [P]``.

    The lengths are rounded to a series with steps of 6 %. ``rng`` draws the places in the carrier.
    """
    grid = _sizes()
    nearest = np.searchsorted(grid[:-1] * _STEP**0.5, np.asarray(lengths) * RATE)
    size = grid[nearest] if shape != FLAT else np.rint(np.asarray(lengths) * RATE)
    count = len(size)
    return SoundPieces(
        np.rint(np.asarray(seconds) * RATE).astype(np.int64),
        np.minimum(size, LONGEST).astype(np.int64),
        np.full(count, carrier),
        rng.integers(0, CARRIER, count),
        np.full(count, shape),
        np.broadcast_to(np.asarray(gain, np.float32), (count,)),
    )


def merged(parts: Sequence[SoundPieces]) -> SoundPieces:
    """All pieces of ``parts`` in order of their start."""
    fields = ("start", "size", "carrier", "offset", "shape", "gain")
    joined = [np.concatenate([getattr(part, field) for part in parts]) for field in fields]
    order = np.argsort(joined[0], kind="stable")
    return SoundPieces(*(values[order] for values in joined))


def render(out: np.ndarray, first: int, found: SoundPieces, carriers: Sequence[np.ndarray]) -> None:
    """Adds to ``out [T]`` float32 in place what the pieces ``found`` give from sample ``first`` of the night on.

    ``carriers``: float32 ``[CARRIER + LONGEST]`` each, as `carrier` makes them.
    """
    scratch = np.empty(LONGEST, np.float32)
    for start, size, index, offset, shape, gain in found.overlapping(first, first + len(out)):
        begin, end = max(start, first), min(start + size, first + len(out))
        part = scratch[: end - begin]
        source = carriers[index][offset + begin - start : offset + end - start]
        if shape == FLAT:
            np.multiply(source, np.float32(gain), out=part)
        else:
            np.multiply(source, envelope(shape, size)[begin - start : end - start], out=part)
            part *= np.float32(gain)
        out[begin - first : end - first] += part


@lru_cache(maxsize=1)
def _sizes() -> np.ndarray:
    count = int(np.log(LONGEST / _SMALLEST) / np.log(_STEP)) + 1
    return np.asarray(np.rint(_SMALLEST * _STEP ** np.arange(count)), np.int64)


@lru_cache(maxsize=256)
def envelope(shape: int, size: int) -> np.ndarray:
    """The envelope ``shape`` at ``size`` points: float32 ``[size]``, with a maximum of 1 and zero at both ends."""
    place = np.linspace(0, 1, size, dtype=np.float32)
    if shape == BREATH_IN:  # rises slowly and stops quickly
        return np.asarray(np.sin(np.pi * place**1.3).clip(0) ** 1.2, np.float32)
    if shape == BREATH_OUT:  # falls slowly
        return np.asarray(np.sin(np.pi * place**0.6).clip(0) ** 1.5, np.float32)
    if shape == BURST:  # a plateau between ramps
        return np.asarray(np.minimum(1, 6 * np.minimum(place, 1 - place)), np.float32)
    assert shape == SWELL
    return np.asarray(np.sin(np.pi * place) ** 2, np.float32)


@lru_cache(maxsize=1)
def hertz() -> np.ndarray:
    """The frequencies at which a response is given: float32 ``[1025]``, 0 to 8000 Hz."""
    return np.linspace(0, RATE / 2, _POINTS + 1, dtype=np.float32)


def band(low: float, high: float, order: float = 2.0) -> np.ndarray:
    """The magnitude of a band pass from ``low`` to ``high`` Hz, with slopes of 6 dB an octave times ``order``."""
    at = hertz()
    rises = 1 / np.sqrt(1 + (low / np.maximum(at, 1)) ** (2 * order))
    falls = 1 / np.sqrt(1 + (at / high) ** (2 * order))
    return np.asarray(rises * falls, np.float32)


def carrier(spectrum: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The sound of ``spectrum [CARRIER / 2 + 1]``, filtered by ``response [1025]``: float32 ``[CARRIER + LONGEST]``.

    Its RMS is 1. It is periodic with `CARRIER` samples, so that a piece may begin at any offset below that.
    """
    steps = (len(spectrum) - 1) // _POINTS
    ramp = np.arange(steps, dtype=np.float32) / steps
    fine = (response[:-1, None] + np.diff(response)[:, None] * ramp).ravel()
    samples = np.asarray(fft.irfft(spectrum[:-1] * fine, 2 * (len(spectrum) - 1)), np.float32)
    samples *= 1 / max(float(np.sqrt(np.vdot(samples, samples) / len(samples))), 1e-20)
    return np.concatenate([samples, samples[:LONGEST]])


@lru_cache(maxsize=8)
def white(number: int, size: int = CARRIER) -> np.ndarray:
    """The spectrum of white noise: complex64 ``[size / 2 + 1]``. Other numbers are independent noises."""
    rng = np.random.default_rng([0x5EE9, number])
    return np.asarray(fft.rfft(rng.standard_normal(size, dtype=np.float32)))


@lru_cache(maxsize=1)
def rustle() -> np.ndarray:
    """The spectrum of bed clothes that move: noise whose level jumps several times a second."""
    rng = np.random.default_rng([0x5EE9, 100])
    steps = CARRIER // 1024
    level = np.exp(0.9 * rng.standard_normal(steps)).astype(np.float32)
    smooth = np.interp(np.arange(CARRIER) / 1024, np.arange(steps), level).astype(np.float32)
    return np.asarray(fft.rfft(smooth * rng.standard_normal(CARRIER, dtype=np.float32)))


@lru_cache(maxsize=1)
def talk() -> np.ndarray:
    """The spectrum of four people who speak in turn, with pauses."""
    found = np.zeros(CARRIER, np.float32)
    for turn in range(4):
        said = speech.speak(0x5EE9, turn, 0, 0, seconds=3.2, channel=0.0)
        found[turn * CARRIER // 4 :][: len(said)] = said
    return np.asarray(fft.rfft(found))


@lru_cache(maxsize=4)
def music(number: int) -> np.ndarray:
    """The spectrum of a tune: notes of a scale with four harmonics that decay, two voices."""
    rng = np.random.default_rng([0x5EE9, 200, number])
    found = np.zeros(CARRIER, np.float32)
    beat = int(RATE * rng.uniform(0.2, 0.45))
    scale = 110 * 2 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16, 19, 21]) / 12) * 2 ** rng.uniform(0, 0.6)
    time = np.arange(3 * beat, dtype=np.float32) / RATE
    notes = [sum(np.sin(2 * np.pi * h * f * time) / h**1.3 for h in range(1, 5)) * np.exp(-2.5 * time) for f in scale]
    for voice in (1, 2):
        for at in range(0, CARRIER - 3 * beat, beat * voice):
            found[at : at + 3 * beat] += notes[rng.integers(len(notes))].astype(np.float32) * rng.uniform(0.3, 1)
    return np.asarray(fft.rfft(found))


def snores(rng: np.random.Generator, pitch: float) -> np.ndarray:
    """The spectrum of a palate that flaps ``pitch`` times a second, irregularly: complex64 ``[CARRIER / 2 + 1]``."""
    count = int(CARRIER * pitch / RATE * 1.2)
    places = np.cumsum(RATE / pitch * (1 + 0.06 * rng.standard_normal(count)))
    places = places[places < CARRIER - 1].astype(np.int64)
    pulses = (0.02 * rng.standard_normal(CARRIER)).astype(np.float32)
    pulses[places] += rng.uniform(0.5, 1.0, len(places)).astype(np.float32)
    return np.asarray(fft.rfft(pulses))

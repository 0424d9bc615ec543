"""Simulated recording conditions: rooms, microphones, noise floors and codecs, each drawn from a seed.

A corpus with one recording per speaker cannot show whether an encoder learns the speaker or the channel. If its
utterances are rendered under several conditions, the channel varies independently of the speaker: condition `k` of a
seed is the same room, microphone and noise for all speakers, and each speaker is heard under several conditions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy import fft

from rayssl.data.decode import RATE
from rayssl.random import draws
from rayssl.schema import Config

_CHOICE, _NOISE = 11, 12  # purposes of the draws
_MICROPHONE_TAPS, _FLOOR_TAPS = 511, 255
_ROOM_S = 0.5


class ConditionsConfig(Config):
    """Simulated recording conditions. Each utterance is rendered under some of them, drawn by its name."""

    count: int = Field(default=8, ge=1, le=1000)
    """The number of conditions, from 1 to 1000. Each is one room, microphone and noise, the same for all speakers."""
    per_utterance: int = Field(default=2, ge=1)
    """Under how many conditions each utterance is rendered, at most ``count``. The corpus grows by this factor."""
    per: Literal["recording", "clip"] = "recording"
    """Matters if clips are joined. With ``recording`` all clips of a recording are rendered under the same conditions,
    so that all its renderings contain the same words. With ``clip`` conditions are drawn for each clip, so that two
    renderings share only some words.
    """
    seed: int = 1
    """The seed of the conditions. The same seed gives the same rooms and microphones: take another one for test data
    that should not share them.
    """
    strength: float = Field(default=1.0, ge=0, le=2)
    """How far conditions are from a clean recording, from 0 to 2. 0 is clean. 1 is a mixture of near and far
    microphones, telephone bands, rooms with 0.15 to 0.6 s of reverberation, and signal-to-noise ratios of 15 to 36 dB.
    """
    codecs: bool = True
    """Whether about half of the conditions have a telephone codec (mu-law with 5 to 8 bits)."""

    @model_validator(mode="after")
    def _enough(self) -> ConditionsConfig:
        if self.per_utterance > self.count:
            raise ValueError(
                f"per_utterance is {self.per_utterance}, but there are only {self.count} conditions (count)"
            )
        return self


@dataclass(frozen=True)
class Condition:
    """One channel: ``response [L]`` of room and microphone, ``floor [M]`` that filters the noise, SNR in dB, and the
    ``bits`` of the codec's quantiser (None: no codec).
    """

    response: np.ndarray
    floor: np.ndarray
    snr_db: float
    bits: int | None


def text_key(text: str) -> int:
    """A 63-bit hash of ``text``. It is the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def chosen(config: ConditionsConfig, name: str) -> list[int]:
    """The conditions of the utterance ``name``, ascending. They depend on the seed and the name only."""
    keys = draws.keys_np(draws.fold(config.seed, _CHOICE, text_key(name)), np.arange(config.count))
    order = np.argsort(draws.uniform_np(keys, _CHOICE), kind="stable")
    return sorted(int(k) for k in order[: config.per_utterance])


def chosen_many(config: ConditionsConfig, names: Sequence[str]) -> np.ndarray:
    """What `chosen` gives for each of the B ``names``: int16 ``[B, per_utterance]``."""
    texts = np.array([text_key(name) for name in names], np.int64)
    starts = draws.fold_np(np.full(len(texts), draws.fold(config.seed, _CHOICE), np.uint64), texts)
    keys = draws.fold_np(np.repeat(starts, config.count), np.tile(np.arange(config.count), len(texts)))
    order = np.argsort(draws.uniform_np(keys, _CHOICE).reshape(len(texts), config.count), axis=1, kind="stable")
    return np.sort(order[:, : config.per_utterance], axis=1).astype(np.int16)


def draw(seed: list[int], strength: float = 1.0, codecs: bool = True) -> Condition:
    """The condition that is drawn from the integers ``seed``."""
    rng = np.random.default_rng(seed)
    room = _room(rng, strength)
    microphone = _microphone(rng, strength)
    response = _convolve(room, microphone)
    snr_db = float(rng.uniform(15, 36))
    coded = rng.uniform() < 0.5
    bits = int(rng.integers(5, 9)) if coded and codecs and strength > 0 else None
    response = (response / np.sqrt(np.sum(response**2))).astype(np.float32)
    return Condition(response, _floor(rng).astype(np.float32), snr_db / max(strength, 1e-3), bits)


def draw_all(config: ConditionsConfig) -> list[Condition]:
    """All conditions of a configuration, by number."""
    return [draw([config.seed, k], config.strength, config.codecs) for k in range(config.count)]


def render(samples: np.ndarray, condition: Condition, seed: list[int]) -> np.ndarray:
    """``samples`` float32 ``[T]`` in [-1, 1] as recorded under ``condition``, with the same length, level and range.

    The noise of this rendering is drawn from ``seed``.
    """
    level = float(np.sqrt(np.mean(samples**2)))
    delay = int(np.argmax(np.abs(condition.response)))
    heard = _convolve(samples, condition.response)[delay : delay + len(samples)]
    noise = np.random.default_rng(seed).standard_normal(len(samples) + len(condition.floor), dtype=np.float32)
    noise = _convolve(noise, condition.floor)[len(condition.floor) :][: len(samples)]
    heard = _scaled(heard, level) + _scaled(noise, level * 10 ** (-condition.snr_db / 20))
    heard = _scaled(heard, level)
    peak = float(np.abs(heard).max(initial=0.0))
    heard = heard / max(1.0, peak / 0.99)
    if condition.bits is not None:
        heard = _mu_law(heard, condition.bits)
    return np.asarray(heard, dtype=np.float32)


def rendering_seed(config: ConditionsConfig, name: str, condition: int) -> list[int]:
    """The seed of the noise when the utterance ``name`` is rendered under ``condition``."""
    return [config.seed, _NOISE, condition, text_key(name)]


def _scaled(samples: np.ndarray, level: float) -> np.ndarray:
    current = float(np.sqrt(np.mean(samples**2)))
    return np.asarray(samples * (level / current if current > 0 else 0.0))


def _room(rng: np.random.Generator, strength: float) -> np.ndarray:
    """An impulse response: direct sound, a few early reflections, and a tail that decays by 60 dB in RT60 seconds."""
    reverberation_s = rng.uniform(0.15, 0.6)
    direct_to_tail_db = rng.uniform(4, 18)
    count = int(rng.integers(3, 8))
    delays = rng.uniform(0.001, 0.03, count)
    gains = rng.uniform(0.1, 0.6, count) * rng.choice([-1, 1], count)
    time = np.arange(int(_ROOM_S * RATE)) / RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / reverberation_s) * (time > 0.005)
    tail *= 10 ** (-direct_to_tail_db / 20) / np.sqrt(np.sum(tail**2))
    response = strength * tail
    np.add.at(response, (delays * RATE).astype(int), strength * gains * 10 ** (-3 * delays / reverberation_s))
    response[0] += 1.0
    return response


def _microphone(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A linear-phase filter with band limits, a slope and resonances, drawn in dB over frequency."""
    hertz = np.linspace(0, RATE / 2, 257)
    octaves = np.log2(np.maximum(hertz, 30) / 1000)
    low, high = 10 ** rng.uniform(np.log10(60), np.log10(400)), 10 ** rng.uniform(np.log10(3000), np.log10(9000))
    decibels = rng.uniform(-8, 8) * octaves
    decibels -= 18 * np.maximum(0, np.log2(low / np.maximum(hertz, 30)))
    decibels -= 30 * np.maximum(0, np.log2(np.maximum(hertz, 30) / high))
    for _ in range(int(rng.integers(3, 7))):
        centre, width, gain = rng.uniform(-2.5, 2.8), rng.uniform(0.15, 0.6), rng.uniform(-20, 20)
        decibels += gain * np.exp(-0.5 * ((octaves - centre) / width) ** 2)
    gains = 10 ** (strength * np.clip(decibels, -45, 25) / 20)
    return _filter(gains, _MICROPHONE_TAPS)


def _floor(rng: np.random.Generator) -> np.ndarray:
    """The filter that colours the noise floor: a slope of -8 to +1 dB an octave and one hump."""
    hertz = np.linspace(0, RATE / 2, 257)
    octaves = np.log2(np.maximum(hertz, 60) / 1000)
    decibels = rng.uniform(-8, 1) * octaves
    decibels += rng.uniform(0, 12) * np.exp(-0.5 * ((octaves - rng.uniform(-2, 2.5)) / 0.4) ** 2)
    return _filter(10 ** (decibels / 20), _FLOOR_TAPS)


def _filter(gains: np.ndarray, taps: int) -> np.ndarray:
    """A linear-phase filter ``[taps]`` (odd) with ``gains [n]`` at n frequencies equally spaced over 0..RATE/2."""
    response = np.roll(fft.irfft(gains), taps // 2)[:taps]
    return np.asarray(response * np.hamming(taps))


def _convolve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The full convolution of two signals, in their precision. `scipy.signal` has one too, but is slow to import."""
    length = len(first) + len(second) - 1
    size = fft.next_fast_len(length, real=True)
    return np.asarray(fft.irfft(fft.rfft(first, size) * fft.rfft(second, size), size)[:length])


def _mu_law(samples: np.ndarray, bits: int) -> np.ndarray:
    """``samples`` after compression to ``bits`` bits and expansion, as telephone codecs do (mu-law, mu = 255)."""
    mu = 255.0
    compressed = np.sign(samples) * np.log1p(mu * np.abs(samples)) / np.log1p(mu)
    steps = 2 ** (bits - 1)
    compressed = np.rint(compressed * steps) / steps
    return np.asarray(np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(mu)) / mu)

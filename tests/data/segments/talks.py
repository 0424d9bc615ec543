"""Talks: speech-like utterances with pauses between them, which everybody can make."""

from __future__ import annotations

import numpy as np

from rayssl.data import speech
from rayssl.data.resampling import RATE


def talk(speaker: int, lengths: tuple[float, ...], pause_s: float = 1.5, seed: int = 0) -> np.ndarray:
    """Utterances of ``lengths`` seconds with ``pause_s`` of weak noise before, between and after them; float32 [T]."""
    noise = np.random.default_rng([seed, speaker])

    def quiet() -> np.ndarray:
        return (1e-4 * noise.standard_normal(int(pause_s * RATE))).astype(np.float32)

    parts = [quiet()]
    for number, seconds in enumerate(lengths):
        said = speech.speak(seed, speaker, 0, number, seconds=seconds, channel=0.0)
        parts += [said + 1e-4 * noise.standard_normal(len(said)).astype(np.float32), quiet()]
    return np.concatenate(parts).astype(np.float32)

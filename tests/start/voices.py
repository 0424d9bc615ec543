"""Folders of recordings: short ones of generated voices, and noise of any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from rayssl.data import speech


def write(folder: Path, name: str, samples: np.ndarray, rate: int = 16000) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, samples, rate, subtype="PCM_16")


def noise(folder: Path, *names: str, seconds: float = 0.6, rate: int = 16000) -> Path:
    """Files of noise; what they hold does not matter."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate))
    for name in names:
        write(folder, name, samples, rate)
    return folder


def voices(folder: Path, count: int = 6, takes: int = 10, seconds: float = 1.2) -> Path:
    """``voice<k>/take<j>.wav`` of generated speakers."""
    for voice in range(count):
        for take in range(takes):
            spoken = speech.speak(0, voice, take % 3, take, seconds=seconds, channel=0.3)
            write(folder, f"voice{voice}/take{take:02d}.wav", spoken)
    return folder

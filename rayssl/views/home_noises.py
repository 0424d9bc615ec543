"""Noise of a home as mel powers: clips that are generated from a seed or made from recordings. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rayssl.data import mel
from rayssl.data.mel import MelConfig
from rayssl.random.draws import fold
from rayssl.views import noises

# Clips that are generated at once: 8 of 37 s are 19 MB, and a few times that while they are made
_AT_ONCE = 8

Powers = NDArray[np.float32]


@lru_cache(maxsize=32)  # some seconds for all kinds, and two recipes or the next run may ask for the same
def generated(kind: str, clips: int, samples: int, config: MelConfig, rate: int, seed: int) -> Powers:
    """Mel powers ``[clips, F, C]`` of generated noise, each of mean 1 and of ``samples`` samples. Read-only.

    ``kind``: see `noises.generate`.
    """
    made = []
    for first in range(0, clips, _AT_ONCE):
        waves = noises.generate(kind, min(_AT_ONCE, clips - first), samples, rate, fold(seed, first))
        made += [_powers(wave, config, rate) for wave in waves]
    stacked = np.stack(made)
    stacked.flags.writeable = False
    return stacked


def from_recordings(recordings: Iterable[NDArray[np.int16]], samples: int, config: MelConfig, rate: int) -> Powers:
    """Mel powers ``[n, F, C]`` of mean 1; recordings are cut to ``samples``, or repeated end to start.

    They are taken one by one. One without power in the bands is left out. Raises `ValueError` if none is left.
    """
    made = []
    for pcm in recordings:
        if np.any(pcm):
            found = _powers(np.resize(pcm, samples).astype(np.float32) / np.float32(32768.0), config, rate)
            if np.any(found):
                made.append(found)
    if not made:
        raise ValueError("no recording holds any sound")
    return np.stack(made)


def _powers(wave: NDArray[np.float32], config: MelConfig, rate: int) -> Powers:
    """``[F, C]`` with one frame for each hop of ``wave [T]``, so that the first frame follows the last in a loop."""
    power = mel.power(wave, config, rate)[:, : len(wave) // round(rate * config.hop_ms / 1000)]
    return (power / max(float(np.mean(power)), 1e-30)).astype(np.float32)

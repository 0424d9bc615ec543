"""Log-mel pictures of epochs of sleep, in NumPy: `rayssl prepare` computes them once, in tasks that import no torch.

A picture holds ``log10(P + 1e-10)`` of the mel-band powers ``P`` (Hann window, centred frames, reflected edges; the
bands have the shape of a triangle in Hz between points that are equidistant on the HTK mel scale). As float16 a
picture is precise to 0.1 dB. `rayssl.models.nightmel` computes the same from samples, in torch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from pydantic import Field, model_validator

from rayssl.schema import Config

EPOCH_S = 30  # seconds of an epoch of sleep
FLOOR = 1e-10


class MelConfig(Config):
    """``n_mels`` bands between ``f_min`` and ``f_max`` Hz; windows of ``win_ms`` every ``hop_ms``, ``n_fft`` samples.

    The defaults are those of the package that seems to be the authors': an epoch of 30 s at 16 kHz has 20 bands and
    1201 frames. With ``hop_ms`` 100 it has 301 frames and a quarter of the bytes.
    """

    n_mels: int = Field(default=20, ge=1)
    """The number of mel bands of a picture."""
    win_ms: float = Field(default=50.0, gt=0)
    """The length of a window in milliseconds; it must fit into ``n_fft`` samples."""
    hop_ms: float = Field(default=25.0, gt=0)
    """The time between two frames in milliseconds. 25 gives an epoch of 30 s 1201 frames; 100 gives 301, a quarter of
    the bytes.
    """
    n_fft: int = Field(default=800, ge=2)
    """The number of samples of the FFT, at least a window: 800 are 50 ms at 16 kHz."""
    f_min: float = Field(default=0.0, ge=0)
    """The lower edge of the lowest band in Hz, below ``f_max``."""
    f_max: float = Field(default=8000.0, gt=0)
    """The upper edge of the highest band in Hz, at most half the sample rate: 8000 at 16 kHz."""

    @model_validator(mode="after")
    def _band(self) -> MelConfig:
        if self.f_min >= self.f_max:
            raise ValueError(f"f_min={self.f_min:g} must be below f_max={self.f_max:g}")
        return self

    def frames(self, samples: int, rate: int) -> int:
        """The number of frames of ``samples`` samples at ``rate`` Hz."""
        return 1 + samples // round(rate * self.hop_ms / 1000)


def power(samples: np.ndarray, config: MelConfig, rate: int) -> np.ndarray:
    """Band powers, float32 ``[F, frames]``, of ``samples [T]`` in [-1, 1] at ``rate`` Hz; T above n_fft / 2."""
    hop, half = round(rate * config.hop_ms / 1000), config.n_fft // 2
    padded = np.pad(np.asarray(samples, np.float32), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[::hop]
    window, filters = tables(config, rate)
    spectrum = np.fft.rfft(frames * window, axis=1)
    return np.ascontiguousarray((np.square(spectrum.real) + np.square(spectrum.imag)) @ filters).T


def picture(samples: np.ndarray, config: MelConfig, rate: int) -> np.ndarray:
    """The picture of ``samples [T]``: float16 ``[F, frames]``."""
    return np.log10(power(samples, config, rate) + np.float32(FLOOR)).astype(np.float16)


def tables(config: MelConfig, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The window ``[n_fft]`` and the bands ``[n_fft // 2 + 1, n_mels]``, float32. Do not write to them."""
    return _tables(config.n_mels, config.win_ms, config.n_fft, config.f_min, config.f_max, rate)


@lru_cache(maxsize=4)
def _tables(
    n_mels: int, win_ms: float, n_fft: int, f_min: float, f_max: float, rate: int
) -> tuple[np.ndarray, np.ndarray]:
    win = min(round(rate * win_ms / 1000), n_fft)
    window = np.zeros(n_fft, np.float32)
    before = (n_fft - win) // 2
    window[before : before + win] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)
    low, high = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (f_min, f_max))
    points = 700.0 * (10.0 ** (np.linspace(low, high, n_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, rate / 2, n_fft // 2 + 1)
    slopes = points[None, :] - bins[:, None]
    widths = np.diff(points)
    falling, rising = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    return window, np.maximum(0.0, np.minimum(falling, rising)).astype(np.float32)

"""Waveform to three channels over time and frequency, as in CLAR (Al-Tahan and Mohsenzadeh, AISTATS 2021)."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from rayssl.errors import ConfigError
from rayssl.models.base import Frontend, FrontendConfig, Layout
from rayssl.models.frontends import check_band, standardised


class SpectrumConfig(FrontendConfig):
    """Three channels with ``bins`` rows each, between ``f_min`` and ``f_max`` Hz; see `Spectrum`.

    They are made from windows of ``n_fft`` samples every ``hop_ms``. The default window of 2048 samples and hop of 128
    samples at 16 kHz are published. The 128 rows from 40 to 8000 Hz are those of the public code. On a CPU, use
    ``n_fft`` 1024, ``hop_ms`` 16 and ``bins`` 64: then there are a quarter of the values.
    """

    name: Literal["spectrum"] = "spectrum"
    """Log-power and phase over logarithmic frequency, and log-mel: three planes as in CLAR, for resnet2d."""
    n_fft: int = Field(default=2048, ge=2)
    """The number of samples of a window and of its FFT. The published 2048 are 128 ms at 16 kHz; on a CPU take 1024."""
    hop_ms: float = Field(default=8.0, gt=0.0)
    """The time between two frames in milliseconds. The published 8 are 128 samples at 16 kHz; on a CPU take 16."""
    bins: int = Field(default=128, ge=1)
    """The number of rows of each plane, over frequency. 128 as in the public code; on a CPU take 64."""
    f_min: float = Field(default=40.0, gt=0.0)
    """The frequency of the lowest row in Hz, above 0 because rows are spaced logarithmically."""
    f_max: float = Field(default=8000.0, gt=0.0)
    """The upper end of the rows in Hz, at most half the sample rate: 8000 at 16 kHz."""
    normalise: bool = True
    """Whether each plane of an utterance gets mean 0 and variance 1."""

    layout: ClassVar[Layout] = "planes"

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """Few rows and a short window."""
        return {"n_fft": 256, "bins": 16}

    @property
    def features(self) -> int:
        """Three channels."""
        return 3

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if rows or hop do not fit ``rate`` Hz, or if the window is too short for the rows."""
        check_band(self.f_min, self.f_max, rate)
        if round(rate * self.hop_ms / 1000) < 1:
            raise ConfigError(f"'encoder.frontend.hop_ms': {self.hop_ms:g} is less than one sample; raise it")
        self.mel_filters(rate)

    def mel_filters(self, rate: int) -> Tensor:
        """The mel filters ``[n_fft / 2 + 1, bins]``; raises `ConfigError` if a band contains no bin of the FFT."""
        with warnings.catch_warnings(action="ignore"):  # torchaudio warns of empty bands; here they are an error
            mel: Tensor = melscale_fbanks(self.n_fft // 2 + 1, self.f_min, self.f_max, self.bins, rate)
        if not mel.any(dim=0).all():
            given = f"{self.bins} mel bands are narrower than the bins of a window of {self.n_fft} samples"
            raise ConfigError(f"'encoder.frontend.bins': {given}; lower it, or raise encoder.frontend.n_fft")
        return mel


class Spectrum(Frontend):
    """Log-power and phase over logarithmic frequency, and log-mel: three channels (Hann window, centred frames).

    Row k of the first two channels is at ``f_min * (f_max / f_min)**(k / bins)`` Hz. Its power is the mean of the FFT
    bins, weighted by a triangle that reaches to the neighbouring rows, but at least one bin to each side. So if rows
    are closer than bins, this is linear interpolation; if they are farther apart, no bin is skipped. The phase of a row
    is that of the nearest bin, an angle in (-pi, pi], because angles cannot be averaged. Powers ``P`` become
    ``log(P + 1e-6)``, as in `LogMel`.

    ``normalise`` gives each channel of an utterance mean 0 and variance 1. The module has no parameters and no saved
    state. Raises `ConfigError` if the rows do not fit ``rate`` (Hz) or the window.
    """

    Config = SpectrumConfig
    window: Tensor
    filters: Tensor
    nearest: Tensor

    def __init__(self, config: SpectrumConfig, rate: int) -> None:
        super().__init__()
        config.check(rate)
        self.n_fft, self.hop = config.n_fft, round(rate * config.hop_ms / 1000)
        self.normalise = config.normalise
        steps = torch.arange(-1, config.bins + 1, dtype=torch.float64) / config.bins
        edges = config.f_min * (config.f_max / config.f_min) ** steps * config.n_fft / rate
        filters = torch.cat((_triangles(edges, config.n_fft // 2 + 1).float(), config.mel_filters(rate)), dim=1)
        # Not saved: they follow from the configuration, and values in a checkpoint could contradict it
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, dim=0), persistent=False)
        self.register_buffer("nearest", edges[1:-1].round().long(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Samples ``wave [B, T]`` in [-1, 1] to ``[B, 3, bins, 1 + T // hop]``, float32; T > n_fft / 2."""
        with torch.autocast(wave.device.type, enabled=False):
            half = self.n_fft // 2
            padded = F.pad(wave.float()[:, None], (half, half), mode="reflect")[:, 0]
            # [B, frames, bins, 2]: real and imaginary parts are adjacent, and each row is twice in `filters`
            spectrum = torch.view_as_real(torch.fft.rfft(padded.unfold(1, self.n_fft, self.hop) * self.window))
            log_power, log_mel = torch.log(spectrum.flatten(-2).square() @ self.filters + 1e-6).chunk(2, dim=2)
            chosen = spectrum[:, :, self.nearest]
            phase = torch.atan2(chosen[..., 1], chosen[..., 0])
            features = torch.stack((log_power, phase, log_mel), dim=1).transpose(2, 3)
            return standardised(features, (2, 3), 1e-5) if self.normalise else features

    def samples_for(self, frames: int) -> int:
        """The smallest number of samples that makes ``frames`` frames."""
        return max(self.n_fft // 2 + 1, (frames - 1) * self.hop)


def _triangles(edges: Tensor, bins: int) -> Tensor:
    """The weights ``[bins, R]`` of the FFT bins in the R rows at ``edges[1:-1]`` (in bins). Those of a row sum to 1."""
    centres = edges[1:-1]
    below = (centres - edges[:-2]).clamp_min(1.0)
    above = (edges[2:] - centres).clamp_min(1.0)
    distance = torch.arange(bins, dtype=edges.dtype)[:, None] - centres
    weights = (1.0 - torch.where(distance < 0, -distance / below, distance / above)).clamp_min(0.0)
    return weights / weights.sum(dim=0)

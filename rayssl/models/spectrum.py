"""Waveform to three channels of one time-frequency plane, as CLAR sees it (Al-Tahan and Mohsenzadeh, AISTATS 2021)."""

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
    """``bins`` rows of each channel between ``f_min`` and ``f_max`` Hz, a window of ``n_fft`` samples every ``hop_ms``.

    The defaults are the published 2048 and 128 samples at 16 kHz, with the 128 rows from 40 to 8000 Hz of the public
    code. On a CPU: ``n_fft`` 1024, ``hop_ms`` 16 and 64 ``bins`` make a quarter of the plane.
    """

    name: Literal["spectrum"] = "spectrum"
    n_fft: int = Field(default=2048, ge=2)
    hop_ms: float = Field(default=8.0, gt=0.0)
    bins: int = Field(default=128, ge=1)
    f_min: float = Field(default=40.0, gt=0.0)
    f_max: float = Field(default=8000.0, gt=0.0)
    normalise: bool = True

    layout: ClassVar[Layout] = "planes"

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A small plane."""
        return {"n_fft": 256, "bins": 16}

    @property
    def features(self) -> int:
        """Three channels."""
        return 3

    def check(self, rate: int) -> None:
        """Raises `ConfigError` where the rows or the hop do not fit ``rate`` Hz, or the rows the window."""
        check_band(self.f_min, self.f_max, rate)
        if round(rate * self.hop_ms / 1000) < 1:
            raise ConfigError(f"'encoder.frontend.hop_ms': {self.hop_ms:g} is less than one sample; raise it")
        self.mel_filters(rate)

    def mel_filters(self, rate: int) -> Tensor:
        """``[n_fft / 2 + 1, bins]``; raises `ConfigError` where a band holds no bin."""
        with warnings.catch_warnings(action="ignore"):  # of empty bands, which are an error here
            mel: Tensor = melscale_fbanks(self.n_fft // 2 + 1, self.f_min, self.f_max, self.bins, rate)
        if not mel.any(dim=0).all():
            given = f"{self.bins} mel bands are narrower than the bins of a window of {self.n_fft} samples"
            raise ConfigError(f"'encoder.frontend.bins': {given}; lower it, or raise encoder.frontend.n_fft")
        return mel


class Spectrum(Frontend):
    """Log-power on a logarithmic axis of frequency, phase on the same axis, and log-mel (Hann window, centred frames).

    Row k of the first two lies at ``f_min * (f_max / f_min)**(k / bins)`` Hz. Its power is the mean of the bins under a
    triangle between its neighbours, but at least a bin wide to either side: where rows lie closer than bins that is
    linear interpolation, and where they lie farther apart no bin is skipped. Its phase, an angle in (-pi, pi], is that
    of the nearest bin, since angles have no mean. Powers ``P`` become ``log(P + 1e-6)``, as in `LogMel`.

    ``normalise`` makes mean 0 and variance 1 of each utterance's channel. The module holds no parameters and no saved
    state. Raises `ConfigError` where the rows do not fit ``rate`` (Hz) or the window.
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
        # They follow from the configuration; saved in a checkpoint, they could only disagree with it
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, dim=0), persistent=False)
        self.register_buffer("nearest", edges[1:-1].round().long(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Samples ``wave [B, T]`` in [-1, 1] to ``[B, 3, bins, 1 + T // hop]``, float32; T > n_fft / 2."""
        with torch.autocast(wave.device.type, enabled=False):
            half = self.n_fft // 2
            padded = F.pad(wave.float()[:, None], (half, half), mode="reflect")[:, 0]
            # [B, frames, rows, 2]: real and imaginary parts lie side by side, and each row of `filters` stands twice
            spectrum = torch.view_as_real(torch.fft.rfft(padded.unfold(1, self.n_fft, self.hop) * self.window))
            log_power, log_mel = torch.log(spectrum.flatten(-2).square() @ self.filters + 1e-6).chunk(2, dim=2)
            chosen = spectrum[:, :, self.nearest]
            phase = torch.atan2(chosen[..., 1], chosen[..., 0])
            features = torch.stack((log_power, phase, log_mel), dim=1).transpose(2, 3)
            return standardised(features, (2, 3), 1e-5) if self.normalise else features

    def samples_for(self, frames: int) -> int:
        """The fewest samples that make ``frames`` frames."""
        return max(self.n_fft // 2 + 1, (frames - 1) * self.hop)


def _triangles(edges: Tensor, bins: int) -> Tensor:
    """Weights ``[bins, R]`` of the bins 0, 1, ... in the R rows at ``edges[1:-1]`` (in bins); each row's sum to 1."""
    centres = edges[1:-1]
    below = (centres - edges[:-2]).clamp_min(1.0)
    above = (edges[2:] - centres).clamp_min(1.0)
    distance = torch.arange(bins, dtype=edges.dtype)[:, None] - centres
    weights = (1.0 - torch.where(distance < 0, -distance / below, distance / above)).clamp_min(0.0)
    return weights / weights.sum(dim=0)

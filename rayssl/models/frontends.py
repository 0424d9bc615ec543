"""Front ends: waveform to log-mel features or to standardised samples; and masks over features.

`rayssl.models.spectrum` has a front end with three channels. Features are always computed in float32, because in
bfloat16 the logarithm of a quiet band would be mostly rounding error.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from rayssl.errors import ConfigError
from rayssl.models.base import Frontend, FrontendConfig, Layout
from rayssl.random.draws_torch import uniform_torch
from rayssl.schema import Config

# Feature masks use the streams of draws 300..399.
_APPLY, _FREQ_WIDTH, _FREQ_START, _TIME_WIDTH, _TIME_START = range(300, 305)


class LogMelConfig(FrontendConfig):
    """``n_mels`` bands between ``f_min`` and ``f_max`` Hz; windows of ``win_ms`` every ``hop_ms``; see `LogMel`."""

    name: Literal["logmel"] = "logmel"
    """Log-mel bands over time, the usual features of speech; for ecapa, fast_resnet34 and resnet2d."""
    n_mels: int = Field(default=40, ge=1)
    """The number of mel bands. 40 to 80 are usual for speakers; more cost time."""
    win_ms: float = Field(default=25.0, gt=0.0)
    """The length of a window in milliseconds; it must fit into ``n_fft`` samples."""
    hop_ms: float = Field(default=10.0, gt=0.0)
    """The time between two frames in milliseconds. A longer hop costs less and resolves less."""
    n_fft: int = Field(default=512, ge=2)
    """The number of samples of the FFT, at least a window: 512 hold 32 ms at 16 kHz."""
    f_min: float = Field(default=20.0, ge=0.0)
    """The lower edge of the lowest band in Hz."""
    f_max: float = Field(default=7600.0, gt=0.0)
    """The upper edge of the highest band in Hz, at most half the sample rate: 8000 at 16 kHz."""
    window: Literal["hamming", "hann"] = "hamming"
    """The shape of a window. ``hamming`` is usual for speech; the published DINO for speakers takes ``hann``."""
    normalise: bool | Literal["mean", "mean_variance"] = True
    """What is taken out of each band over the segment: ``mean`` (the same as true) subtracts its mean, which removes
    the frequency response of a constant channel; ``mean_variance`` also divides by its standard deviation, as published
    for speakers; false changes nothing.
    """

    @property
    def features(self) -> int:
        """``n_mels``."""
        return self.n_mels

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if the window or the bands do not fit ``rate`` Hz."""
        win = round(rate * self.win_ms / 1000)
        if win > self.n_fft:
            given = f"{self.n_fft} is shorter than the window of {win} samples"
            raise ConfigError(f"'encoder.frontend.n_fft': {given}; raise it")
        check_band(self.f_min, self.f_max, rate)


class LogMel(Frontend):
    """``log(P + 1e-6)`` of the mel-band powers ``P`` (periodic Hamming or Hann window, centred frames).

    ``normalise`` true or ``mean`` subtracts the mean of each band over the frames of the utterance. This removes the
    frequency response of a constant channel. ``mean_variance`` also divides by ``sqrt(variance + 1e-5)`` of the band
    over the frames (biased variance): what `torch.nn.InstanceNorm1d` does, by which the public code for SSPS
    normalises. The module has no parameters and no saved state. Raises `ConfigError` if the settings do not fit
    ``rate`` (Hz).
    """

    Config = LogMelConfig
    window: Tensor
    filters: Tensor

    def __init__(self, config: LogMelConfig, rate: int) -> None:
        super().__init__()
        config.check(rate)
        win, hop = round(rate * config.win_ms / 1000), round(rate * config.hop_ms / 1000)
        self.n_mels, self.n_fft, self.hop = config.n_mels, config.n_fft, hop
        self.normalise = config.normalise
        before = (config.n_fft - win) // 2
        shape = torch.hamming_window(win) if config.window == "hamming" else torch.hann_window(win)
        window = F.pad(shape, (before, config.n_fft - win - before))
        filters = melscale_fbanks(config.n_fft // 2 + 1, config.f_min, config.f_max, config.n_mels, rate)
        # Not saved: they follow from the configuration, and values in a checkpoint could contradict it
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, dim=0), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Samples ``wave [B, T]`` in [-1, 1] to features ``[B, n_mels, 1 + T // hop]``, float32; T > n_fft / 2."""
        with torch.autocast(wave.device.type, enabled=False):
            half = self.n_fft // 2
            padded = F.pad(wave.float()[:, None], (half, half), mode="reflect")[:, 0]
            spectrum = torch.fft.rfft(padded.unfold(1, self.n_fft, self.hop) * self.window)
            # Real and imaginary parts are adjacent, and each row is twice in `filters`. So one product adds their
            # squares and sums over bands, in half the time of the complex modulus in `torchaudio`
            power = torch.view_as_real(spectrum).flatten(-2).square() @ self.filters
            features = torch.log(power.transpose(1, 2) + 1e-6)
            if self.normalise == "mean_variance":
                return standardised(features, (2,), 1e-5)
            if self.normalise:
                features = features - features.mean(dim=-1, keepdim=True)
            return features

    def samples_for(self, frames: int) -> int:
        """The smallest number of samples that makes ``frames`` frames."""
        return max(self.n_fft // 2 + 1, (frames - 1) * self.hop)


class RawConfig(FrontendConfig):
    """The samples themselves. With ``normalise`` they get mean 0 and variance 1; see `Raw`."""

    name: Literal["raw"] = "raw"
    """The samples themselves as features, for resnet1d."""
    normalise: bool = True
    """Whether each utterance gets mean 0 and variance 1, so that its level has no effect."""

    layout: ClassVar[Layout] = "samples"


class Raw(Frontend):
    """Samples as one channel. ``normalise`` gives each utterance mean 0 and variance 1, so that gain has no effect.

    A constant utterance becomes zeros.
    """

    Config = RawConfig

    def __init__(self, config: RawConfig, rate: int = 16000) -> None:
        super().__init__()
        self.normalise = config.normalise

    def forward(self, wave: Tensor) -> Tensor:
        """Samples ``wave [B, T]`` in [-1, 1] to ``[B, 1, T]``, float32."""
        samples = wave.float()[:, None]
        return standardised(samples, (2,), 1e-10) if self.normalise else samples

    def samples_for(self, frames: int) -> int:
        """``frames``: each sample is a frame."""
        return frames


def standardised(x: Tensor, dims: tuple[int, ...], floor: float) -> Tensor:
    """``x`` with mean 0 and biased variance 1 over ``dims``. ``floor`` is added to the variance before division."""
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + floor)


def check_band(f_min: float, f_max: float, rate: int) -> None:
    """Raises `ConfigError` unless ``f_min < f_max <= rate / 2``, all in Hz."""
    if not f_min < f_max <= rate / 2:
        bounds = f"above f_min and at most {rate / 2:g} Hz"
        raise ConfigError(f"'encoder.frontend.f_max': must be {bounds}, got {f_max:g}")


class FeatureMaskConfig(Config):
    """SpecAugment (Park et al., 2019) without time warping: sets bands and frames to 0. Off if ``p`` is 0.

    A row is masked with probability ``p``, by ``freq_masks`` masks over bands and ``time_masks`` masks over frames. The
    width of a mask is drawn uniformly from 0..``freq_width`` bands or 0..``time_width`` frames.
    """

    p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability, from 0 to 1, that the features of a segment are masked in training; 0 turns masks off."""
    freq_masks: int = Field(default=1, ge=0)
    """The number of masks over bands; 0 for none."""
    freq_width: int = Field(default=6, ge=0)
    """The widest mask over bands, in bands; the width is drawn uniformly from 0 to this."""
    time_masks: int = Field(default=1, ge=0)
    """The number of masks over time; 0 for none."""
    time_width: int = Field(default=10, ge=0)
    """The widest mask over time, in frames of ``frontend.hop_ms``; the width is drawn uniformly from 0 to this."""


class FeatureMask(nn.Module):
    """Masks rows of features by draws from each row's key. All channels of a row have the same masks.

    Masked features become 0, which is the mean after normalisation: of each log-mel band, or of each spectrum channel.
    """

    def __init__(self, config: FeatureMaskConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, keys: Tensor) -> Tensor:
        """``features [B, F, T]`` or ``[B, C, F, T]`` with masks; ``keys [B]`` int64. The input does not change."""
        config = self.config
        if config.p == 0.0:
            return features
        bands = _covered(keys, features.shape[-2], config.freq_masks, config.freq_width, _FREQ_WIDTH, _FREQ_START)
        times = _covered(keys, features.shape[-1], config.time_masks, config.time_width, _TIME_WIDTH, _TIME_START)
        chosen = uniform_torch(keys, _APPLY) < config.p
        masked = (bands[:, :, None] | times[:, None, :]) & chosen[:, None, None]
        return features.masked_fill(masked if features.dim() == 3 else masked[:, None], 0.0)


def _covered(keys: Tensor, length: int, masks: int, width: int, width_stream: int, start_stream: int) -> Tensor:
    """Bool ``[B, length]``: the positions that are covered by any of ``masks`` masks of at most ``width``."""
    widths = torch.floor(uniform_torch(keys, width_stream, masks) * (min(width, length) + 1))
    starts = torch.floor(uniform_torch(keys, start_stream, masks) * (length - widths + 1))
    positions = torch.arange(length, device=keys.device)
    inside = (positions >= starts[..., None]) & (positions < (starts + widths)[..., None])
    return inside.any(dim=1)

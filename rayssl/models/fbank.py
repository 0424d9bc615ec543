"""The log-mel features with which other toolkits trained the encoders that they publish: for starts from their weights.

`rayssl.models.frontends.LogMel` is the front end for encoders of our own. Its features differ from these in the window,
the bands, the scale and the floor, so that weights of others give other embeddings with it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

from rayssl.errors import ConfigError
from rayssl.models.base import Frontend, FrontendConfig

_WINDOW_S, _HOP_S = 0.025, 0.010
_LEAST_KALDI = torch.finfo(torch.float32).eps  # of a power, with samples of 16 bits
_LEAST_SPEECHBRAIN, _RANGE_DB = 1e-10, 80.0


class FbankConfig(FrontendConfig):
    """``n_mels`` bands up to half the sample rate, windows of 25 ms every 10 ms; see `Fbank`."""

    name: Literal["fbank"] = "fbank"
    """Log-mel bands as kaldi, wespeaker or speechbrain compute them, for a start from weights of theirs."""
    style: Literal["kaldi", "speechbrain"] = "kaldi"
    """Whose features these are: ``kaldi``'s filter banks, which wespeaker uses, or those of ``speechbrain``. Take the
    one with which the weights in ``encoder.start_from`` were trained.
    """
    n_mels: int = Field(default=80, ge=4)
    """The number of mel bands; 80 in the published speaker encoders of both toolkits."""

    @property
    def features(self) -> int:
        """``n_mels``."""
        return self.n_mels

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if a band is narrower than the resolution at ``rate`` Hz, so that nothing is in it."""
        empty = int((~_filters(self, rate).any(dim=0)).sum())
        if empty:
            given = f"{empty} of {self.n_mels} bands are narrower than the bins of a window of 25 ms"
            raise ConfigError(f"'encoder.frontend.n_mels': {given}; lower it")


class Fbank(Frontend):
    """Log powers of mel bands, minus the mean of each band over the frames of the utterance.

    ``kaldi``: as `torchaudio.compliance.kaldi.fbank` with a Hamming window, without dither and energy, of samples of
    16 bits: frames that lie inside the utterance, without their mean, pre-emphasis 0.97, power spectrum, triangles on
    the mel scale from 20 Hz, ``log(max(P, 2**-23))``.

    ``speechbrain``: as `speechbrain.lobes.features.Fbank`: centred frames with zeros at both ends, a periodic Hamming
    window, triangles over frequency from 0 Hz whose half width is the distance to the band below,
    ``10 log10(max(P, 1e-10))``, not more than 80 dB below the utterance's largest value.

    The module has no parameters and no saved state. Raises `ConfigError` if the bands do not fit ``rate`` (Hz).
    """

    Config = FbankConfig
    window: Tensor
    filters: Tensor

    def __init__(self, config: FbankConfig, rate: int) -> None:
        super().__init__()
        config.check(rate)
        self.kaldi, self.n_mels = config.style == "kaldi", config.n_mels
        self.length, self.hop = round(rate * _WINDOW_S), round(rate * _HOP_S)
        # Not saved: they follow from the configuration
        self.register_buffer("window", torch.hamming_window(self.length, periodic=not self.kaldi), persistent=False)
        self.register_buffer("filters", _filters(config, rate).repeat_interleave(2, dim=0), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Samples ``wave [B, T]`` in [-1, 1] to float32 features ``[B, n_mels, frames]``.

        There are ``1 + (T - window) // hop`` frames (kaldi) or ``1 + T // hop`` (speechbrain).
        """
        with torch.autocast(wave.device.type, enabled=False):
            features = self._kaldi(wave.float()) if self.kaldi else self._speechbrain(wave.float())
            return features - features.mean(dim=-1, keepdim=True)

    def _kaldi(self, wave: Tensor) -> Tensor:
        frames = (wave * 32768.0).unfold(1, self.length, self.hop)
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat((frames[..., :1], frames[..., :-1]), dim=2)
        frames = (frames - 0.97 * before) * self.window
        return self._powers(frames, _padded(self.length)).clamp_min(_LEAST_KALDI).log()

    def _speechbrain(self, wave: Tensor) -> Tensor:
        half = self.length // 2
        frames = F.pad(wave, (half, half)).unfold(1, self.length, self.hop) * self.window
        levels = 10.0 * self._powers(frames, self.length).clamp_min(_LEAST_SPEECHBRAIN).log10()
        return torch.maximum(levels, levels.amax(dim=(1, 2), keepdim=True) - _RANGE_DB)

    def _powers(self, frames: Tensor, n_fft: int) -> Tensor:
        """The powers ``[B, n_mels, frames]`` of the bands of windowed frames ``[B, frames, length]``."""
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n_fft))
        return (spectrum.flatten(-2).square() @ self.filters).transpose(1, 2)

    def samples_for(self, frames: int) -> int:
        """The smallest number of samples that makes ``frames`` frames."""
        return (frames - 1) * self.hop + self.length if self.kaldi else max(1, (frames - 1) * self.hop)


def _padded(length: int) -> int:
    """The next power of two."""
    return 1 << (length - 1).bit_length()


def _filters(config: FbankConfig, rate: int) -> Tensor:
    """The weights ``[n_fft / 2 + 1, n_mels]`` of the bins of the spectrum in each band."""
    length = round(rate * _WINDOW_S)
    if config.style == "kaldi":
        banks: Tensor = get_mel_banks(config.n_mels, _padded(length), float(rate), 20.0, 0.0, 100.0, -500.0, 1.0)[0]
        return F.pad(banks, (0, 1)).T.contiguous()  # the bin at half the sample rate is in no band
    mel = torch.linspace(0.0, 2595.0 * math.log10(1.0 + rate / 2 / 700.0), config.n_mels + 2)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    width, centre = (edges[1:] - edges[:-1])[:-1], edges[1:-1]
    bins = torch.linspace(0.0, rate // 2, length // 2 + 1)
    return (1.0 - ((bins[:, None] - centre) / width).abs()).clamp_min(0.0)

"""Samples of a night, or log-mel pictures that `rayssl prepare` has stored, to standardised pictures of sleep epochs.

A picture is the one of `rayssl.data.mel`: ``log10(P + 1e-10)`` of the mel-band powers ``P`` of one epoch of 30 s. The
same tables of window and bands make it here, in torch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rayssl.data.mel import FLOOR, MelConfig, tables
from rayssl.errors import ConfigError
from rayssl.models.base import Frontend, FrontendConfig, Layout
from rayssl.models.exporting import exporting
from rayssl.models.frontends import standardised

EPOCH_S = 30
# Epochs whose spectra are computed at once: 1201 windows of 800 samples each take 4 MB, twice as much as spectra
_TOGETHER = 16


class NightMelConfig(FrontendConfig):
    """The pictures of epochs, and their scale.

    ``mel``: bands and frames of a picture; a corpus of stored pictures must have been prepared with the same.
    ``loudness``: ``epoch`` scales each epoch's picture by its own maximum, mean and deviation, so that the loudness of
    one epoch against another is lost. ``sequence`` scales all epochs of a sequence by the same three numbers, so that
    it stays. ``floor_db``: how many dB below the maximum the values end. ``centre``: ``band`` takes the mean over time
    from each band, in dB, so that the colour of a stationary noise is lost and breathing stands out.
    """

    name: Literal["nightmel"] = "nightmel"
    """Log-mel pictures of epochs of sleep of 30 s, for sleepformer and soundsleepnet."""
    mel: MelConfig = MelConfig()
    """Bands and frames of a picture. A corpus of stored pictures must have been prepared with the same values."""
    loudness: Literal["epoch", "sequence"] = "epoch"
    """``epoch`` scales each epoch's picture by its own maximum, mean and deviation, so that its loudness against other
    epochs is lost. ``sequence`` scales all epochs of a sequence alike, so that it stays.
    """
    floor_db: float = Field(default=80.0, gt=0.0)
    """How many dB below the maximum the values of a picture end; quieter ones are raised to this floor."""
    centre: Literal["none", "band"] = "none"
    """``band`` subtracts the mean over time from each band, in dB, so that the colour of a steady noise is lost and
    breathing stands out; ``none`` does not.
    """

    layout: ClassVar[Layout] = "epochs"

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A frame every 100 ms."""
        return {"mel": {"hop_ms": 100}}

    @property
    def features(self) -> int:
        """``mel.n_mels``."""
        return self.mel.n_mels

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if window, hop or bands do not fit ``rate`` Hz."""
        win = round(rate * self.mel.win_ms / 1000)
        if win > self.mel.n_fft:
            given = f"{self.mel.n_fft} is shorter than the window of {win} samples"
            raise ConfigError(f"'encoder.frontend.mel.n_fft': {given}; raise it")
        if round(rate * self.mel.hop_ms / 1000) < 1:
            raise ConfigError(f"'encoder.frontend.mel.hop_ms': {self.mel.hop_ms:g} is less than one sample; raise it")
        if self.mel.f_max > rate / 2:
            raise ConfigError(f"'encoder.frontend.mel.f_max': must be at most {rate / 2:g} Hz, got {self.mel.f_max:g}")


class NightMel(Frontend):
    """Samples or stored pictures of N consecutive epochs to standardised pictures ``[B, N, F, frames]``, float32.

    With ``L`` the picture of an epoch (``loudness: epoch``) or the pictures of all N epochs (``sequence``)::

        d = max(10 (L - max L), -floor_db)        dB below the maximum
        d = d - mean of its band                  with centre: band
        x = (d - mean d) / std d

    This is librosa's ``power_to_db(ref=max, top_db=floor_db)``, standardised. Constant pictures (digital silence)
    become zeros. The module has no parameters and no saved state. Raises `ConfigError` if the settings do not fit
    ``rate`` (Hz).
    """

    Config = NightMelConfig
    window: Tensor
    filters: Tensor

    def __init__(self, config: NightMelConfig, rate: int) -> None:
        super().__init__()
        config.check(rate)
        mel = config.mel
        self.config, self.rate, self.epoch_samples = config, rate, EPOCH_S * rate
        self.n_fft, self.hop = mel.n_fft, round(rate * mel.hop_ms / 1000)
        window, filters = map(torch.from_numpy, tables(mel, rate))
        # Not saved: they follow from the configuration. Real and imaginary part of a bin are neighbours, see `power`
        self.register_buffer("window", window.clone(), persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, dim=0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised pictures ``[B, N, F, frames]`` of what `pictures` accepts."""
        return self.scaled(self.pictures(x))

    def pictures(self, x: Tensor) -> Tensor:
        """Pictures ``[B, N, F, frames]`` float32, ``log10(P + 1e-10)``, not standardised.

        ``x`` is samples ``[B, T]`` in [-1, 1], with T = N * ``epoch_samples``; each epoch's picture is made of its own
        samples. Or ``x`` is such pictures already, as they are stored, of any float type.
        """
        if x.dim() == 4:
            return x.float()
        return torch.log10(self.power(x.unflatten(1, (-1, self.epoch_samples))) + FLOOR)

    def power(self, samples: Tensor) -> Tensor:
        """Band powers ``[..., F, frames]`` float32 >= 0 of ``samples [..., T]`` in [-1, 1], for any T > n_fft / 2.

        Each row is padded by its own reflected samples: rows are epochs, and do not see each other.
        """
        with torch.autocast(samples.device.type, enabled=False):
            rows = samples.float().reshape(-1, samples.shape[-1])
            # a graph of `torch.export` has no loop over a free number of rows
            parts = [rows] if exporting() else rows.split(_TOGETHER)
            found = torch.cat([self._power(part) for part in parts])
            return found.reshape(*samples.shape[:-1], *found.shape[1:])

    def scaled(self, pictures: Tensor) -> Tensor:
        """``pictures [B, N, F, frames]`` in dB below the maximum, cut at ``floor_db``, with mean 0 and variance 1."""
        dims = (2, 3) if self.config.loudness == "epoch" else (1, 2, 3)
        with torch.autocast(pictures.device.type, enabled=False):
            decibels = 10.0 * (pictures.float() - pictures.float().amax(dims, keepdim=True))
            decibels = decibels.clamp_min(-self.config.floor_db)
            if self.config.centre == "band":
                decibels = decibels - decibels.mean([dim for dim in dims if dim != 2], keepdim=True)
            return standardised(decibels, dims, 1e-6)

    def samples_for(self, frames: int) -> int:
        """The samples of one epoch: ``30 * rate``."""
        return self.epoch_samples

    def _power(self, rows: Tensor) -> Tensor:
        half = self.n_fft // 2
        padded = F.pad(rows[:, None], (half, half), mode="reflect")[:, 0]
        spectrum = torch.fft.rfft(padded.unfold(1, self.n_fft, self.hop) * self.window)
        # each row is twice in `filters`: one product adds the squares of both parts and sums over bands
        return (torch.view_as_real(spectrum).flatten(-2).square() @ self.filters).transpose(1, 2)

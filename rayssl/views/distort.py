"""Augmentation of whole batches on the training device: reverberation, additive noise, gain.

Every draw is a hash of the row's own key (`rayssl.random.draws_torch`). So the result for a row depends neither on the
other rows of the batch nor on the rank that computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.random.draws import fold
from rayssl.views import banks, noises, rooms, rows
from rayssl.views.banks import BankSource, RecordedBank
from rayssl.views.mixing import Mixing
from rayssl.views.recipes import DistortConfig, NoiseConfig, ReverbConfig

# Distortion uses the streams of draws 200..299; noise uses five of them.
_REVERB, _ROOM, _NOISE, _GAIN, _DB = 200, 201, 202, 207, 208

_TINY = 1e-9


def build_distort(config: DistortConfig, rate: int, seed: int, recorded: BankSource = RecordedBank.read) -> Distort:
    """The distortion for ``rate`` Hz, with banks that are generated from ``seed``, the same on every rank.

    ``recorded`` gives the banks of the corpora of noises and rooms that the configuration names. Raises `ConfigError`
    if a corpus has another rate or contains no sound.
    """
    noise_banks = _noise_banks(config.noise, rate, seed, recorded) if config.noise.p > 0.0 else []
    room_bank = _room_bank(config.reverb, rate, seed, recorded) if config.reverb.p > 0.0 else None
    return Distort(config, noise_banks, room_bank)


class Distort(nn.Module):
    """Reverberation, then noise, then gain, each with its own probability per row.

    ``noise_banks`` holds one bank ``[clips, L]`` per kind, all with the same ``L``; ``room_bank`` is ``[rooms, R]``.
    The banks are not saved in the state.
    """

    room_bank: Tensor | None

    def __init__(self, config: DistortConfig, noise_banks: list[Tensor], room_bank: Tensor | None) -> None:
        super().__init__()
        self.config = config
        noise = config.noise
        snr_db = noise.snr_db_by_kind() if noise.snr_db_of else noise.snr_db
        self.noise = Mixing(noise.p, snr_db, noise_banks, _NOISE) if noise_banks else None
        self.register_buffer("room_bank", room_bank, persistent=False)

    @torch.no_grad()
    def forward(self, wave: Tensor, keys: Tensor) -> Tensor:
        """``wave [B, T]`` float32 in [-1, 1] and ``keys [B]`` int64 to a new ``[B, T]`` in [-1, 1]; no gradient.

        Silent rows stay silent. The signal of the signal-to-noise ratio is the row after reverberation.
        """
        gain = self.config.gain
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            if self.room_bank is not None:
                wave = self._reverberate(wave, keys, self.room_bank)
            if self.noise is not None:
                wave = self.noise(wave, keys)
            return rows.in_range(wave, rows.gain(keys, (_GAIN, _DB), gain.p, gain.db))

    def _reverberate(self, wave: Tensor, keys: Tensor, bank: Tensor) -> Tensor:
        """Convolves rows with a drawn room response, cuts them to their length, and rescales them to their power."""
        samples = wave.shape[1]
        length = noises.fast_length(samples + bank.shape[1] - 1)
        chosen = rows.chosen(keys, _REVERB, self.config.reverb.p)
        response = bank[rows.index(keys, _ROOM, len(bank))]
        spectrum = torch.fft.rfft(wave, length) * torch.fft.rfft(response, length)
        wet = torch.fft.irfft(spectrum, length)[:, :samples]
        wet = wet * (rows.level(wave) / rows.level(wet).clamp_min(_TINY))
        return torch.where(chosen, wet, wave)


def _noise_banks(config: NoiseConfig, rate: int, seed: int, recorded: BankSource) -> list[Tensor]:
    samples = round(config.clip_s * rate)
    made = []
    for kind in config.kinds:
        wanted = banks.of_noise(config, kind, rate, seed)
        if wanted is not None:
            made.append(torch.tensor(recorded(wanted)))  # a copy, since other ranks may share the array
        else:
            made.append(torch.from_numpy(noises.generate(kind, config.clips, samples, rate, fold(seed, 201))))
    return made


def _room_bank(config: ReverbConfig, rate: int, seed: int, recorded: BankSource) -> Tensor:
    wanted = banks.of_reverb(config, rate, seed)
    if wanted is not None:
        return torch.tensor(recorded(wanted))
    samples = max(1, round(config.length_s * rate))
    return torch.from_numpy(rooms.generate(config.rooms, samples, rate, config.rt60_s, fold(seed, 202)))

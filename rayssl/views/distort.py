"""Augmentation of whole batches on the training device: reverberation, additive noise, gain.

Every draw hashes the row's own key (`rayssl.draws_torch`), so that a row's result depends neither on the batch around
it nor on the rank that computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.draws import fold
from rayssl.draws_torch import uniform_torch
from rayssl.views import noises, rooms
from rayssl.views.recipes import DistortConfig, NoiseConfig, ReverbConfig
from rayssl.views.recordings import read_recordings

# Streams of draws 200..299 belong to distortion.
_REVERB, _ROOM, _NOISE, _KIND, _CLIP, _OFFSET, _SNR, _GAIN, _DB = range(200, 209)

_TINY = 1e-9


def build_distort(config: DistortConfig, rate: int, seed: int) -> Distort:
    """The distortion with its banks, made from ``seed`` for ``rate`` Hz; rank-independent.

    Reads the noise or room corpus that the configuration names; raises `ConfigError` where one cannot serve.
    """
    noise_banks = _noise_banks(config.noise, rate, seed) if config.noise.p > 0.0 else []
    room_bank = _room_bank(config.reverb, rate, seed) if config.reverb.p > 0.0 else None
    return Distort(config, noise_banks, room_bank)


class Distort(nn.Module):
    """Reverberation, then noise, then gain, each with its probability per row; ``banks`` are not part of the state.

    ``noise_banks`` holds one ``[clips, L]`` per kind, of equal ``L``; ``room_bank`` is ``[rooms, R]``.
    """

    noise_bank: Tensor | None
    room_bank: Tensor | None
    first_clip: Tensor
    clip_count: Tensor

    def __init__(self, config: DistortConfig, noise_banks: list[Tensor], room_bank: Tensor | None) -> None:
        super().__init__()
        self.config = config
        counts = [len(bank) for bank in noise_banks]
        firsts = [sum(counts[:kind]) for kind in range(len(counts))]
        self.register_buffer("noise_bank", torch.cat(noise_banks) if noise_banks else None, persistent=False)
        self.register_buffer("room_bank", room_bank, persistent=False)
        self.register_buffer("first_clip", torch.tensor(firsts, dtype=torch.int64), persistent=False)
        self.register_buffer("clip_count", torch.tensor(counts, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def forward(self, wave: Tensor, keys: Tensor) -> Tensor:
        """``wave [B, T]`` float32 in [-1, 1] and ``keys [B]`` int64 to a new ``[B, T]`` in [-1, 1]; no gradient.

        Silent rows stay silent. The signal-to-noise ratio is that of the (reverberated) row to its noise.
        """
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            if self.room_bank is not None:
                wave = self._reverberate(wave, keys, self.room_bank)
            if self.noise_bank is not None:
                wave = self._add_noise(wave, keys, self.noise_bank)
            return self._scale(wave, keys)

    def _reverberate(self, wave: Tensor, keys: Tensor, bank: Tensor) -> Tensor:
        """Convolution with a drawn response, cut to the row's length and rescaled to its power."""
        samples = wave.shape[1]
        length = noises.fast_length(samples + bank.shape[1] - 1)
        chosen = _chosen(keys, _REVERB, self.config.reverb.p)
        response = bank[_index(keys, _ROOM, len(bank))]
        spectrum = torch.fft.rfft(wave, length) * torch.fft.rfft(response, length)
        wet = torch.fft.irfft(spectrum, length)[:, :samples]
        wet = wet * (_level(wave) / _level(wet).clamp_min(_TINY))
        return torch.where(chosen, wet, wave)

    def _add_noise(self, wave: Tensor, keys: Tensor, bank: Tensor) -> Tensor:
        """Noise from a drawn kind, clip and position, at a drawn ratio: ``10 log10(P_wave / P_noise)`` dB."""
        config = self.config.noise
        kind = _index(keys, _KIND, len(self.first_clip))
        clip = self.first_clip[kind] + (uniform_torch(keys, _CLIP) * self.clip_count[kind]).long()
        samples = wave.shape[1]
        if samples > bank.shape[1]:
            bank = bank.repeat(1, -(-samples // bank.shape[1]))
        # A view of every window: indexing it copies whole rows, several times faster than gathering sample by sample
        windows = bank.unfold(1, samples, 1)
        noise = windows[clip, _index(keys, _OFFSET, windows.shape[1])]
        ratio = 10.0 ** (_between(keys, _SNR, config.snr_db) / 20.0)
        level = _level(wave) / (_level(noise).clamp_min(_TINY) * ratio)
        return torch.addcmul(wave, noise, torch.where(_chosen(keys, _NOISE, config.p), level, 0.0))

    def _scale(self, wave: Tensor, keys: Tensor) -> Tensor:
        """A drawn gain, and 1 / peak where the peak would exceed 1."""
        gain = 10.0 ** (_between(keys, _DB, self.config.gain.db) / 20.0)
        gain = torch.where(_chosen(keys, _GAIN, self.config.gain.p), gain, 1.0)
        peak = wave.abs().amax(dim=1, keepdim=True) * gain
        scaled = wave * (gain / peak.clamp_min(1.0))
        return scaled.clamp(-1.0, 1.0)


def _noise_banks(config: NoiseConfig, rate: int, seed: int) -> list[Tensor]:
    samples = round(config.clip_s * rate)
    banks = []
    for kind in config.kinds:
        if kind == "corpus":
            assert config.corpus is not None
            key = "views.distort.noise.corpus"
            recordings = read_recordings(config.corpus, key, rate, samples, fold(seed, 203))
            banks.append(torch.from_numpy(noises.from_recordings(recordings, samples)))
        else:
            banks.append(torch.from_numpy(noises.generate(kind, config.clips, samples, rate, fold(seed, 201))))
    return banks


def _room_bank(config: ReverbConfig, rate: int, seed: int) -> Tensor:
    samples = max(1, round(config.length_s * rate))
    if config.corpus is not None:
        recordings = read_recordings(config.corpus, "views.distort.reverb.corpus", rate, None, fold(seed, 204))
        return torch.from_numpy(rooms.from_recordings(recordings, samples))
    return torch.from_numpy(rooms.generate(config.rooms, samples, rate, config.rt60_s, fold(seed, 202)))


def _level(wave: Tensor) -> Tensor:
    """Square root of each row's energy, ``[B, 1]``."""
    level: Tensor = torch.linalg.vector_norm(wave, dim=1, keepdim=True)
    return level


def _chosen(keys: Tensor, stream: int, p: float) -> Tensor:
    return (uniform_torch(keys, stream) < p)[:, None]


def _index(keys: Tensor, stream: int, count: int) -> Tensor:
    """Uniform int64 ``[B]`` in 0..count-1."""
    return (uniform_torch(keys, stream) * count).long().clamp_max(count - 1)


def _between(keys: Tensor, stream: int, bounds: tuple[float, float]) -> Tensor:
    """Uniform float32 ``[B, 1]`` between ``bounds``."""
    low, high = bounds
    return (low + (high - low) * uniform_torch(keys, stream))[:, None]

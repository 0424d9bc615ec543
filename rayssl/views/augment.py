"""The augmentations of CLAR (Al-Tahan and Mohsenzadeh, AISTATS 2021) for whole batches on the training device.

Their order is fixed:

1. Pitch shift and time stretch, on the clean row, because a vocoder would smear noise and the edges of a mask.
2. Noise. Its level is relative to the whole sound, not to the part that a fade leaves. It also covers the silence at
   the end that a faster tempo leaves.
3. The envelopes. The time shift comes before the fades, so that the fades are at the ends of the row. The mask comes
   after all noise, so that masked samples are silent.
4. Gain, which also brings the row back into [-1, 1].

Every draw is a hash of the row's own key, as in `rayssl.views.distort`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rayssl import transfer
from rayssl.random.draws import fold
from rayssl.random.draws_torch import uniform_torch
from rayssl.views import envelopes, noises, rows, stretch
from rayssl.views.mixing import Mixing
from rayssl.views.recipes import AugmentConfig

# Augmentation uses the streams of draws 400..499; each kind of noise uses five of them.
_PITCH, _SEMITONES, _STRETCH, _RATE = range(400, 404)
_SHIFT, _SHIFT_SHARE, _MASK, _MASK_SHARE, _MASK_START, _GAIN, _DB = range(404, 411)
_FADE, _FADE_IN, _FADE_IN_SHAPE, _FADE_OUT, _FADE_OUT_SHAPE = range(411, 416)
_WHITE, _MIXED = 420, 425

_CLIPS, _CLIP_S = 8, 4.0
_FADE_SHAPES = 3

# Samples that are stretched at once: few, so that a group has rows with similar factors, and to bound the memory
_AT_ONCE = 1 << 18


def build_augment(config: AugmentConfig, rate: int, seed: int) -> Augment:
    """The augmentations for ``rate`` Hz. If they add noise, it is generated from ``seed``, the same on every rank."""
    kinds: list[str] = []
    if config.white_noise.p > 0.0 or config.mixed_noise.p > 0.0:
        kinds = ["white"] if config.mixed_noise.p == 0.0 else ["white", "brown", "pink"]
    samples = round(_CLIP_S * rate)
    clips = [noises.generate(kind, _CLIPS, samples, rate, fold(seed, 401)) for kind in kinds]
    return Augment(config, rate, [torch.from_numpy(made) for made in clips])


class Augment(nn.Module):
    """The augmentations of ``config`` in the order of its fields, each with its own probability per row.

    ``noise_banks``: clips ``[clips, L]`` of white noise and, for ``mixed_noise``, also of brown and of pink noise.
    """

    def __init__(self, config: AugmentConfig, rate: int, noise_banks: list[Tensor]) -> None:
        super().__init__()
        self.config = config
        self.frame = stretch.frame_samples(rate)
        white, mixed = config.white_noise, config.mixed_noise
        self.white = Mixing(white.p, white.snr_db, noise_banks[:1], _WHITE) if white.p > 0.0 else None
        self.mixed = Mixing(mixed.p, mixed.snr_db, noise_banks, _MIXED) if mixed.p > 0.0 else None

    @torch.no_grad()
    def forward(self, wave: Tensor, keys: Tensor, host_keys: Tensor | None = None) -> Tensor:
        """``wave [B, T]`` float32 in [-1, 1] and ``keys [B]`` int64 to a new ``[B, T]`` in [-1, 1]; no gradient.

        Silent rows stay silent. Rows for which no augmentation is drawn do not change. ``host_keys``: the same keys on
        the host, where it is decided which rows get another pitch or tempo. Without them the host waits for the device.
        """
        config = self.config
        host_keys = keys.cpu() if host_keys is None else host_keys
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            if config.pitch_shift.p > 0.0:
                wave = self._shift_pitch(wave, host_keys)
            if config.time_stretch.p > 0.0:
                wave = self._stretch(wave, host_keys)
            if self.white is not None:
                wave = self.white(wave, keys)
            if self.mixed is not None:
                wave = self.mixed(wave, keys)
            if config.time_shift.p > 0.0:
                wave = self._shift(wave, keys)
            if config.fade.p > 0.0:
                wave = self._fade(wave, keys)
            if config.time_mask.p > 0.0:
                wave = self._mask(wave, keys)
            return rows.in_range(wave, rows.gain(keys, (_GAIN, _DB), config.gain.p, config.gain.db))

    def _shift_pitch(self, wave: Tensor, host_keys: Tensor) -> Tensor:
        config = self.config.pitch_shift
        factor = 2.0 ** (rows.between(host_keys, _SEMITONES, config.semitones)[:, 0].double() / 12.0)
        chosen = rows.chosen(host_keys, _PITCH, config.p)[:, 0]
        return _remade(wave, chosen, factor, lambda part, factors: stretch.pitched(part, factors, self.frame))

    def _stretch(self, wave: Tensor, host_keys: Tensor) -> Tensor:
        config, samples = self.config.time_stretch, wave.shape[1]
        rate = rows.between(host_keys, _RATE, config.rate)[:, 0].double()
        chosen = rows.chosen(host_keys, _STRETCH, config.p)[:, 0]

        def change(part: Tensor, rates: Tensor) -> Tensor:
            return stretch.stretched(part, transfer.send(rates, part.device), samples, self.frame)

        return _remade(wave, chosen, rate, change)

    def _shift(self, wave: Tensor, keys: Tensor) -> Tensor:
        config = self.config.time_shift
        most = config.most * wave.shape[1]
        shift = rows.between(keys, _SHIFT_SHARE, (-most, most))[:, 0].trunc().long()
        chosen = rows.chosen(keys, _SHIFT, config.p)[:, 0]
        return envelopes.rolled(wave, torch.where(chosen, shift, 0))

    def _fade(self, wave: Tensor, keys: Tensor) -> Tensor:
        config, samples = self.config.fade, wave.shape[1]
        chosen = rows.chosen(keys, _FADE, config.p)[:, 0]
        for stream, shape_stream, ends in ((_FADE_IN, _FADE_IN_SHAPE, False), (_FADE_OUT, _FADE_OUT_SHAPE, True)):
            length = torch.where(chosen, _length(keys, stream, config.most, samples), 0)
            gains = envelopes.fade_gains(length, rows.index(keys, shape_stream, _FADE_SHAPES), samples)
            wave = wave * (gains.flip(1) if ends else gains)
        return wave

    def _mask(self, wave: Tensor, keys: Tensor) -> Tensor:
        config, samples = self.config.time_mask, wave.shape[1]
        chosen = rows.chosen(keys, _MASK, config.p)[:, 0]
        width = torch.where(chosen, _length(keys, _MASK_SHARE, config.most, samples), 0)
        start = (uniform_torch(keys, _MASK_START) * (samples - width + 1)).long()
        return envelopes.masked(wave, torch.minimum(start, samples - width), width)


def _length(keys: Tensor, stream: int, most: float, samples: int) -> Tensor:
    """Uniform int64 ``[B]`` from 0 to ``most * samples``, both included; ``most`` is a share in [0, 1]."""
    return rows.index(keys, stream, int(most * samples) + 1)


def _remade(wave: Tensor, chosen: Tensor, factor: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A copy of ``wave [B, T]`` in which the rows with ``chosen [B]`` are replaced by ``change(rows, factors)``.

    ``chosen`` and ``factor [B]`` lie on the host. Rows with similar factors are changed together, because a group takes
    as long as its longest row.
    """
    order = factor.argsort()
    order = order[chosen[order]]
    result = wave.clone()
    for part in order.split(max(1, _AT_ONCE // wave.shape[1])):
        if len(part):
            there = transfer.send(part, wave.device)
            result[there] = change(wave[there], factor[part])
    return result

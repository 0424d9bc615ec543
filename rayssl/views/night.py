"""The augmentations of sequences of log-mel pictures of epochs of sleep, for whole batches on the training device.

A picture is log10(P + 1e-10) of the powers P of an epoch's mel bands (`rayssl.data.mel`). Every draw is a hash of the
sequence's own key, as in `rayssl.views.distort`: the result for a sequence depends neither on the other sequences of
the batch nor on the rank. `NightAugmentConfig` says why the parts have their order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rayssl.data.mel import FLOOR, MelConfig
from rayssl.data.sources.nights import EPOCH_S
from rayssl.random.draws import fold
from rayssl.random.draws_torch import uniform_torch
from rayssl.views import banks, home_noises
from rayssl.views.banks import BankSource
from rayssl.views.night_recipes import NightAugmentConfig, NightMaskConfig, NightNoiseConfig, Per

# The augmentation of nights uses the streams of draws 500..599. Each mask uses two, and there are at most 8 of a kind.
_PITCH, _SHIFT = 500, 501
_NOISE, _KIND, _CLIP, _START, _SNR = range(502, 507)
_RANGE, _EXPONENT, _GAIN, _DB, _MASK = range(507, 512)
_TIMES, _BANDS = 520, 540

# Numbers that are augmented at once, to bound the memory: 16 MiB of pictures, and about four times that beside them
_AT_ONCE = 1 << 22

_LN10 = math.log(10.0)
_TINY = 1e-30


def build_night_augment(
    config: NightAugmentConfig, recipe: str, mel: MelConfig, rate: int, seed: int, recorded: BankSource
) -> NightAugment:
    """The augmentation ``recipe`` for pictures by ``mel`` of sound at ``rate`` Hz.

    Banks are generated from ``seed``, the same on every rank; ``recorded`` gives that of a corpus. Raises
    `ConfigError` if the corpus has another rate or contains no sound.
    """
    noise, made = config.noise, list[Tensor]()
    for kind in noise.kinds if noise.p > 0.0 else ():
        if kind == "corpus":
            wanted = banks.of_night_noise(noise, recipe, mel, rate, seed)
            assert wanted is not None
            made.append(torch.tensor(recorded(wanted)))  # a copy, since other ranks may share the array
        else:
            samples = round(noise.clip_s * rate)
            made.append(torch.tensor(home_noises.generated(kind, noise.clips, samples, mel, rate, fold(seed, 501))))
    return NightAugment(config, mel, rate, made)


class NightAugment(nn.Module):
    """The augmentations of ``config`` in the order of its fields, each with its own probability.

    ``noise_banks``: powers ``[clips, F, C]`` of each kind of noise, in the bands of ``mel`` and all with the same C,
    the number of hops. ``rate`` is that of the sound in Hz. The banks are not saved in the state.
    """

    def __init__(self, config: NightAugmentConfig, mel: MelConfig, rate: int, noise_banks: list[Tensor]) -> None:
        super().__init__()
        self.config = config
        frames = mel.frames(EPOCH_S * rate, rate)
        self.noise = _NightNoise(config.noise, noise_banks, frames) if noise_banks else None

    @torch.no_grad()
    def forward(self, pictures: Tensor, keys: Tensor) -> Tensor:
        """``pictures [B, N, F, frames]`` and ``keys [B]`` int64 to new pictures of that shape, float32; no gradient.

        N epochs follow one another. Where no part is drawn, pictures do not change. ``frames`` may be less than an
        epoch has.
        """
        made = pictures.to(torch.float32, copy=True).contiguous()
        rows = max(1, _AT_ONCE // math.prod(pictures.shape[1:]))
        with torch.autocast(pictures.device.type, enabled=False):
            for part, key in zip(made.split(rows), keys.split(rows), strict=True):
                self._augment(part, key)
        return made

    def _augment(self, pictures: Tensor, keys: Tensor) -> None:
        """All parts, in place."""
        config = self.config
        if config.pitch.p > 0.0:
            self._shift_pitch(pictures, keys)
        if self.noise is not None:
            self.noise.add_to(pictures, keys)
        if config.range.p > 0.0:
            self._change_range(pictures, keys)
        if config.gain.p > 0.0:
            self._change_gain(pictures, keys)
        if config.mask.p > 0.0:
            _mask(pictures, keys, config.mask)

    def _shift_pitch(self, pictures: Tensor, keys: Tensor) -> None:
        """Band f becomes what was at f - shift, or the band at the edge; linear between two bands."""
        config, (_, epochs, bands, frames) = self.config.pitch, pictures.shape
        most = config.most * bands
        shift = _between(keys, _SHIFT, config.per, epochs, (-most, most))
        shift = torch.where(_chosen(keys, _PITCH, config.per, epochs, config.p), shift, 0.0)
        source = torch.arange(bands, device=keys.device) - shift[..., None]
        source = source.clamp(0.0, bands - 1).expand(-1, epochs, -1)
        below = source.long()
        rows = torch.arange(below[..., 0].numel(), device=keys.device).view(-1, epochs, 1) * bands
        flat = pictures.view(-1, frames)
        above = flat.index_select(0, (rows + (below + 1).clamp_max(bands - 1)).flatten())
        here = flat.index_select(0, (rows + below).flatten())
        torch.lerp(here, above, (source - below).flatten()[:, None], out=flat)

    def _change_range(self, pictures: Tensor, keys: Tensor) -> None:
        """log10 P becomes m + e (log10 P - m), where m is the mean of log10 P."""
        config, epochs = self.config.range, pictures.shape[1]
        low, high = config.exponent
        drawn = _between(keys, _EXPONENT, config.per, epochs, (math.log(low), math.log(high))).exp()
        mean = _mean(pictures) if config.per == "epoch" else _mean(pictures).mean(dim=1, keepdim=True)
        chosen = _chosen(keys, _RANGE, config.per, epochs, config.p)
        exponent = torch.where(chosen, drawn, 1.0)
        # with the exponent 1 the offset is 0, so that the rest keeps its bits
        pictures.mul_(_spread(exponent)).add_(_spread(mean * (1.0 - exponent)))

    def _change_gain(self, pictures: Tensor, keys: Tensor) -> None:
        config, epochs = self.config.gain, pictures.shape[1]
        drawn = _between(keys, _DB, config.per, epochs, config.db) / 10.0
        pictures.add_(_spread(torch.where(_chosen(keys, _GAIN, config.per, epochs, config.p), drawn, 0.0)))


class _NightNoise(nn.Module):
    """Adds noise in the domain of power. ``noise_banks`` as for `NightAugment`; an epoch has ``frames`` frames."""

    bank: Tensor
    first_clip: Tensor
    clip_count: Tensor

    def __init__(self, config: NightNoiseConfig, noise_banks: list[Tensor], frames: int) -> None:
        super().__init__()
        self.config, self.frames = config, frames
        counts = [len(bank) for bank in noise_banks]
        firsts = [sum(counts[:kind]) for kind in range(len(counts))]
        clips = torch.cat(noise_banks)
        self.hops = clips.shape[2]
        # Each clip goes on from its start, so that a window of an epoch may begin at each of its hops
        looped = clips[:, :, torch.arange(self.hops + frames - 1) % self.hops].contiguous()
        self.register_buffer("bank", looped, persistent=False)
        self.register_buffer("first_clip", torch.tensor(firsts, dtype=torch.int64), persistent=False)
        self.register_buffer("clip_count", torch.tensor(counts, dtype=torch.int64), persistent=False)

    def add_to(self, pictures: Tensor, keys: Tensor) -> None:
        """Makes ``pictures [B, N, F, frames]`` log10(P + g N + 1e-10), where the drawn ratio gives g. Silence stays."""
        config, (_, epochs, _, frames) = self.config, pictures.shape
        assert frames <= self.frames, f"an epoch has {self.frames} frames, got {frames}"
        noise = self._drawn(keys, epochs, frames)
        power = (pictures * _LN10).exp_()
        signal = (_mean(power).mean(dim=1, keepdim=True) - FLOOR).clamp_min(0.0)
        level = _mean(noise)
        if config.per == "sequence":
            level = level.mean(dim=1, keepdim=True)
        ratio = 10.0 ** (_between(keys, _SNR, config.per, epochs, config.snr_db) / 10.0)
        gain = signal / (level.clamp_min(_TINY) * ratio)
        mixed = power.addcmul_(noise, _spread(gain)).log10_()
        chosen = _spread(_chosen(keys, _NOISE, config.per, epochs, config.p))
        torch.where(chosen, mixed, pictures, out=pictures)

    def _drawn(self, keys: Tensor, epochs: int, frames: int) -> Tensor:
        """The powers of the noise of each epoch, ``[B, N, F, frames]``."""
        config = self.config
        kind_at, clip_at, start_at = (_uniform(keys, of, config.per, epochs) for of in (_KIND, _CLIP, _START))
        kind = (kind_at * len(self.first_clip)).long()
        clip = self.first_clip[kind] + (clip_at * self.clip_count[kind]).long()
        start = (start_at * self.hops).long()
        if config.per == "sequence":  # the last frame of an epoch is where the first of the next one is
            start = (start + torch.arange(epochs, device=keys.device) * (self.frames - 1)) % self.hops
        # A view of all windows: indexing it copies whole rows, several times faster than gathering single frames
        windows = self.bank.unfold(2, frames, 1).transpose(1, 2)
        return windows[clip.expand_as(start), start]


def _mask(pictures: Tensor, keys: Tensor, config: NightMaskConfig) -> None:
    """Fills the masks of time and of bands, all with the fill of the epoch before any mask."""
    _, epochs, bands, frames = pictures.shape
    per, chosen = config.per, _chosen(keys, _MASK, config.per, epochs, config.p)[..., None]
    fill = _spread(pictures.amin(dim=(2, 3)) if config.fill == "min" else _mean(pictures))
    for mask in range(config.times):
        inside = chosen & _interval(keys, _TIMES + 2 * mask, per, epochs, config.time_most, frames)
        _fill(pictures, inside[:, :, None], fill)
    for mask in range(config.bands):
        inside = chosen & _interval(keys, _BANDS + 2 * mask, per, epochs, config.band_most, bands)
        _fill(pictures, inside[..., None], fill)


def _fill(pictures: Tensor, inside: Tensor, fill: Tensor) -> None:
    """``fill`` where ``inside`` is true; both broadcast. Twice as fast as `torch.where`, which is not vectorised."""
    share = inside.float()
    pictures.mul_(1.0 - share).addcmul_(fill, share)  # the shares are 0 and 1, so that the rest keeps its bits


def _interval(keys: Tensor, stream: int, per: Per, epochs: int, most: float, length: int) -> Tensor:
    """Bool ``[B, N or 1, length]``, true in an interval of 0 to ``most * length`` places; uniform width and start."""
    width = (_uniform(keys, stream, per, epochs) * (int(most * length) + 1)).long()
    start = (_uniform(keys, stream + 1, per, epochs) * (length - width + 1)).long()
    start = torch.minimum(start, length - width)[..., None]
    places = torch.arange(length, device=keys.device)
    return (places >= start) & (places < start + width[..., None])


def _uniform(keys: Tensor, stream: int, per: Per, epochs: int) -> Tensor:
    """Uniform float32 in [0, 1): ``[B, 1]`` per sequence or ``[B, N]`` per epoch, for N ``epochs``."""
    return uniform_torch(keys, stream, epochs if per == "epoch" else 1)


def _between(keys: Tensor, stream: int, per: Per, epochs: int, bounds: tuple[float, float]) -> Tensor:
    """Uniform float32 between ``bounds``, ``[B, 1]`` or ``[B, N]``."""
    low, high = bounds
    return low + (high - low) * _uniform(keys, stream, per, epochs)


def _chosen(keys: Tensor, stream: int, per: Per, epochs: int, p: float) -> Tensor:
    """True with probability ``p``, bool ``[B, 1]`` or ``[B, N]``."""
    return _uniform(keys, stream, per, epochs) < p


def _mean(pictures: Tensor) -> Tensor:
    """The mean of each epoch, ``[B, N]``.

    Over time first, then over bands: then each sum is short, and its order does not depend on the size of the batch.
    """
    return pictures.mean(dim=3).mean(dim=2)


def _spread(values: Tensor) -> Tensor:
    """``[B, N or 1]`` to ``[B, N or 1, 1, 1]``, for all places of a picture."""
    return values[..., None, None]

"""Additive noise for whole batches, from banks of clips that are kept on the training device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.random.draws_torch import uniform_torch
from rayssl.views import rows

_TINY = 1e-9


class Mixing(nn.Module):
    """Noise with probability ``p`` per row, at a ratio drawn uniformly from ``snr_db``; the bank is no state.

    ``banks`` holds one ``[clips, L]`` per kind, of equal ``L``. Draws take five streams, the first of them ``stream``.
    """

    bank: Tensor
    first_clip: Tensor
    clip_count: Tensor

    def __init__(self, p: float, snr_db: tuple[float, float], banks: list[Tensor], stream: int) -> None:
        super().__init__()
        self.p, self.snr_db, self.stream = p, snr_db, stream
        counts = [len(bank) for bank in banks]
        firsts = [sum(counts[:kind]) for kind in range(len(counts))]
        self.register_buffer("bank", torch.cat(banks), persistent=False)
        self.register_buffer("first_clip", torch.tensor(firsts, dtype=torch.int64), persistent=False)
        self.register_buffer("clip_count", torch.tensor(counts, dtype=torch.int64), persistent=False)

    def forward(self, wave: Tensor, keys: Tensor) -> Tensor:
        """``wave [B, T]`` with noise from a drawn kind, clip and position, not limited to [-1, 1]; ``keys [B]``.

        The drawn ratio is ``10 log10(P_wave / P_noise)`` dB over the whole row, so that silent rows stay silent.
        """
        chosen, kinds, clips, offset, snr = range(self.stream, self.stream + 5)
        kind = rows.index(keys, kinds, len(self.first_clip))
        clip = self.first_clip[kind] + (uniform_torch(keys, clips) * self.clip_count[kind]).long()
        samples, bank = wave.shape[1], self.bank
        if samples > bank.shape[1]:
            bank = bank.repeat(1, -(-samples // bank.shape[1]))
        # A view of every window: indexing it copies whole rows, several times faster than gathering sample by sample
        windows = bank.unfold(1, samples, 1)
        noise = windows[clip, rows.index(keys, offset, windows.shape[1])]
        ratio = 10.0 ** (rows.between(keys, snr, self.snr_db) / 20.0)
        level = rows.level(wave) / (rows.level(noise).clamp_min(_TINY) * ratio)
        return torch.addcmul(wave, noise, torch.where(rows.chosen(keys, chosen, self.p), level, 0.0))

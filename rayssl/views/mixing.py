"""Adds noise to whole batches. The banks of noise clips are kept on the training device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.random.draws_torch import uniform_torch
from rayssl.views import rows

_TINY = 1e-9


class Mixing(nn.Module):
    """Adds noise with probability ``p`` per row, at a signal-to-noise ratio drawn uniformly from ``snr_db``.

    ``banks`` holds one bank ``[clips, L]`` per kind, all with the same ``L``. ``snr_db``: one range in dB, or a list
    with a range for each kind. The banks are not saved in the state. Draws use five streams, ``stream`` to
    ``stream + 4``.
    """

    bank: Tensor
    first_clip: Tensor
    clip_count: Tensor
    bounds: Tensor

    def __init__(
        self,
        p: float,
        snr_db: tuple[float, float] | list[tuple[float, float]],
        banks: list[Tensor],
        stream: int,
    ) -> None:
        super().__init__()
        self.p, self.snr_db, self.stream = p, snr_db, stream
        counts = [len(bank) for bank in banks]
        firsts = [sum(counts[:kind]) for kind in range(len(counts))]
        self.register_buffer("bank", torch.cat(banks), persistent=False)
        self.register_buffer("first_clip", torch.tensor(firsts, dtype=torch.int64), persistent=False)
        self.register_buffer("clip_count", torch.tensor(counts, dtype=torch.int64), persistent=False)
        self.register_buffer("bounds", torch.tensor(snr_db if isinstance(snr_db, list) else []), persistent=False)

    def forward(self, wave: Tensor, keys: Tensor) -> Tensor:
        """``wave [B, T]`` with noise of a drawn kind, clip and position; ``keys [B]`` int64. May leave [-1, 1].

        The drawn ratio is ``10 log10(P_wave / P_noise)`` dB over the whole row. So silent rows stay silent.
        """
        chosen, kinds, clips, offset, snr = range(self.stream, self.stream + 5)
        kind = rows.index(keys, kinds, len(self.first_clip))
        clip = self.first_clip[kind] + (uniform_torch(keys, clips) * self.clip_count[kind]).long()
        samples, bank = wave.shape[1], self.bank
        if samples > bank.shape[1]:
            bank = bank.repeat(1, -(-samples // bank.shape[1]))
        # A view of all windows: indexing it copies whole rows, several times faster than gathering single samples
        windows = bank.unfold(1, samples, 1)
        noise = windows[clip, rows.index(keys, offset, windows.shape[1])]
        if isinstance(self.snr_db, list):
            low, high = self.bounds[kind].unbind(dim=1)
            drawn = (low + (high - low) * uniform_torch(keys, snr))[:, None]
        else:
            drawn = rows.between(keys, snr, self.snr_db)
        ratio = 10.0 ** (drawn / 20.0)
        level = rows.level(wave) / (rows.level(noise).clamp_min(_TINY) * ratio)
        return torch.addcmul(wave, noise, torch.where(rows.chosen(keys, chosen, self.p), level, 0.0))

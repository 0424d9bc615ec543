"""Sequences of epochs of sleep as they travel, to log-mel pictures on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.data.shards import Manifest
from rayssl.models.nightmel import NightMel, NightMelConfig


class NightInput(nn.Module):
    """Epochs of a corpus, int16 ``[B * N, values]``, to pictures ``[B, N, F, frames]``, float32.

    ``length``: N. The values are samples, or the bytes of float16 pictures, as ``manifest`` says. ``config``: how
    pictures are made of samples.
    """

    def __init__(self, manifest: Manifest, length: int, config: NightMelConfig) -> None:
        super().__init__()
        self.length, self._shape = length, manifest.epoch_shape
        self._mel = NightMel(config, manifest.rate) if manifest.mel is None else None

    @torch.no_grad()
    def forward(self, epochs: Tensor) -> Tensor:
        """The pictures of all sequences; see the class."""
        if self._mel is None:
            pictures = epochs.contiguous().view(torch.float16).float()
            return pictures.view(-1, self.length, *self._shape)
        return self._mel.pictures((epochs.float() / 32768.0).view(-1, self.length * self._shape[0]))

"""The recipes that segments can name, as modules for the training device."""

from __future__ import annotations

from torch import nn

from rayssl.views.augment import build_augment
from rayssl.views.banks import BankSource, RecordedBank
from rayssl.views.distort import build_distort
from rayssl.views.recipes import ViewsConfig


def build_recipes(views: ViewsConfig, rate: int, seed: int, recorded: BankSource = RecordedBank.read) -> nn.ModuleDict:
    """The recipes ``distort``, ``weak`` and ``strong`` for ``rate`` Hz. Their banks are the same on all ranks.

    Each is called as ``(wave [B, T], keys [B]) -> [B, T]``. A recipe without noise and reverberation has no bank. Other
    banks are generated from ``seed``, or ``recorded`` gives them. Raises `ConfigError` if a corpus that the
    configuration names has another rate or contains no sound.
    """
    return nn.ModuleDict(
        {
            "distort": build_distort(views.distort, rate, seed, recorded),
            "weak": build_augment(views.weak, rate, seed),
            "strong": build_augment(views.strong, rate, seed),
        }
    )

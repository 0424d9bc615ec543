"""The recipes that segments name, as modules for the training device."""

from __future__ import annotations

from torch import nn

from rayssl.views.augment import build_augment
from rayssl.views.distort import build_distort
from rayssl.views.recipes import ViewsConfig


def build_recipes(views: ViewsConfig, rate: int, seed: int) -> nn.ModuleDict:
    """``distort``, ``weak`` and ``strong`` for ``rate`` Hz, their banks made from ``seed``; rank-independent.

    Each is called as ``(wave [B, T], keys [B]) -> [B, T]``. Only those that do something have banks. Raises
    `ConfigError` where a corpus that the configuration names cannot serve.
    """
    return nn.ModuleDict(
        {
            "distort": build_distort(views.distort, rate, seed),
            "weak": build_augment(views.weak, rate, seed),
            "strong": build_augment(views.strong, rate, seed),
        }
    )

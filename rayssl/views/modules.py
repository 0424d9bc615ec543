"""The recipes that segments can name, as modules for the training device."""

from __future__ import annotations

from torch import nn

from rayssl.data.mel import MelConfig
from rayssl.views.augment import build_augment
from rayssl.views.banks import BankSource, RecordedBank
from rayssl.views.distort import build_distort
from rayssl.views.night import build_night_augment
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


def build_night_recipes(
    views: ViewsConfig, mel: MelConfig, rate: int, seed: int, recorded: BankSource = RecordedBank.read
) -> nn.ModuleDict:
    """The recipes ``weak`` and ``strong`` of ``views.night``, for pictures by ``mel`` of sound at ``rate`` Hz.

    Each is called as ``(pictures [B, N, F, frames], keys [B]) -> [B, N, F, frames]``. Their banks are the same on all
    ranks, generated from ``seed`` or given by ``recorded``. Raises `ConfigError` as `build_recipes` does.
    """
    recipes = {"weak": views.night.weak, "strong": views.night.strong}
    return nn.ModuleDict(
        {name: build_night_augment(recipe, name, mel, rate, seed, recorded) for name, recipe in recipes.items()}
    )

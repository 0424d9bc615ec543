"""Learning-rate schedules. They are functions of the step alone: there is no state to save or restore."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from rayssl.schema import Config


class ScheduleConfig(Config):
    """How the learning rate changes.

    ``step``: it is multiplied by ``factor`` every ``every_epochs`` epochs (0.95 every 5 in the SSPS paper).
    ``cosine``: it falls to ``final_lr`` at the last step. ``constant``: it stays. Before each of them it rises linearly
    from zero for ``warmup_epochs`` epochs.
    """

    name: Literal["step", "cosine", "constant"] = "step"
    """``step`` multiplies the rate by ``factor`` every ``every_epochs`` epochs; ``cosine`` lets it fall to ``final_lr``
    at the last step; ``constant`` keeps it.
    """
    factor: float = Field(0.95, gt=0, le=1)
    """For ``step``: the factor of each fall, above 0 and at most 1. The SSPS paper has 0.95 every 5 epochs."""
    every_epochs: int = Field(5, ge=1)
    """For ``step``: the number of epochs between two falls of the learning rate."""
    warmup_epochs: float = Field(0.0, ge=0)
    """The number of epochs, also a fraction, in which the rate first rises linearly from zero to ``lr``; 0 starts with
    the full rate. Large batches and Transformers need some.
    """
    final_lr: float = Field(1e-5, ge=0)
    """For ``cosine``: the learning rate at the last step."""


def learning_rate(config: ScheduleConfig, base: float, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of the global ``step``, counted from 0, out of ``steps_per_epoch * epochs`` steps."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return base * (step + 1) / warmup
    if config.name == "step":
        return base * config.factor ** (step // steps_per_epoch // config.every_epochs)
    if config.name == "cosine":
        span = max(1.0, steps_per_epoch * epochs - 1 - warmup)
        progress = min(1.0, (step - warmup) / span)
        return config.final_lr + (base - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    return base
